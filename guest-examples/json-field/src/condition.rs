//! Comparing a field with a constant.

use std::cmp::Ordering;
use std::str::FromStr;

use crate::{Malformed, Path, number, string};

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It equals the constant.
    Equal,
    /// It does not.
    NotEqual,
    /// It is less.
    Less,
    /// It is less or equal.
    LessOrEqual,
    /// It is greater.
    Greater,
    /// It is greater or equal.
    GreaterOrEqual,
    /// It is a string that contains the constant.
    Contains,
}

impl FromStr for Operator {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "==" | "eq" => Self::Equal,
            "!=" | "ne" => Self::NotEqual,
            "<" | "lt" => Self::Less,
            "<=" | "le" => Self::LessOrEqual,
            ">" | "gt" => Self::Greater,
            ">=" | "ge" => Self::GreaterOrEqual,
            "contains" => Self::Contains,
            _ => return Err("an operator is one of == != < <= > >= contains"),
        })
    }
}

impl Operator {
    #[inline]
    fn accepts(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
            Self::Contains => false,
        }
    }
}

/// What a field is compared with, by what the constant looks like.
#[derive(Clone, Debug, PartialEq)]
enum Constant {
    Number(f64),
    /// `true`, `false` or `null`.
    Word(Vec<u8>),
    Text(Vec<u8>),
}

/// A field, an operator and a constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    path: Path,
    operator: Operator,
    constant: Constant,
}

impl Condition {
    /// Compares the field at `path` with `constant`: a number if it looks like one, `true`,
    /// `false` or `null` if it is one of them, else a string, with or without quotes. In quotes
    /// even a number is a string.
    ///
    /// # Errors
    /// If the operator cannot be used with such a constant.
    pub fn new(path: Path, operator: Operator, constant: &str) -> Result<Self, String> {
        let bytes = constant.as_bytes();
        let constant = if let Some(number) = number(bytes) {
            Constant::Number(number)
        } else if matches!(constant, "true" | "false" | "null") {
            Constant::Word(bytes.to_vec())
        } else {
            Constant::Text(string(bytes).map_or_else(|| bytes.to_vec(), |text| text.into_owned()))
        };
        let usable = match constant {
            Constant::Number(_) => operator != Operator::Contains,
            Constant::Word(_) => matches!(operator, Operator::Equal | Operator::NotEqual),
            Constant::Text(_) => true,
        };
        if !usable {
            return Err("true, false and null have no order, and only strings contain".to_owned());
        }
        Ok(Self {
            path,
            operator,
            constant,
        })
    }

    /// Whether the condition holds for a JSON text. It does not hold if the field is missing or
    /// is not of the constant's type; a number is compared as an `f64`.
    ///
    /// # Errors
    /// If the text is not JSON, as far as it had to be read.
    #[inline]
    pub fn holds(&self, json: &[u8]) -> Result<bool, Malformed> {
        let Some(value) = self.path.find(json)? else {
            return Ok(false);
        };
        Ok(match &self.constant {
            Constant::Number(constant) => number(value)
                .and_then(|number| number.partial_cmp(constant))
                .is_some_and(|order| self.operator.accepts(order)),
            Constant::Word(word) => {
                matches!(value, b"true" | b"false" | b"null")
                    && self.operator.accepts(value.cmp(word))
            }
            Constant::Text(wanted) => string(value).is_some_and(|text| match self.operator {
                Operator::Contains => contains(&text, wanted),
                operator => operator.accepts((*text).cmp(wanted)),
            }),
        })
    }
}

/// Texts are short here; a record's field is not a document.
fn contains(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| window == wanted)
}
