//! Samples as text: the door to the crate that knows the format.

use std::fmt;

use millstream_store::{BUCKETS, Histogram};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit as NamedUnit};

use super::families::{Family, Kind, Unit};

/// Puts a page together of what `source` writes.
pub(super) fn render(source: impl Source) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(source)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Who knows the figures.
pub(super) trait Source: Send + Sync + 'static {
    /// Writes each family once.
    fn write(&self, page: &mut Page<'_>) -> fmt::Result;
}

struct Collected<S>(S);

impl<S> fmt::Debug for Collected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collected")
    }
}

impl<S: Source> Collector for Collected<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Page(encoder))
    }
}

/// A page that is being written.
pub(super) struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// Writes one family, with the samples that `each` adds.
    pub(super) fn family(
        &mut self,
        family: &Family,
        each: impl FnOnce(&mut Samples<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let unit = family.unit.map(|unit| match unit {
            Unit::Bytes => NamedUnit::Bytes,
            Unit::Seconds => NamedUnit::Seconds,
        });
        let kind = match family.kind {
            Kind::Gauge => MetricType::Gauge,
            Kind::Counter => MetricType::Counter,
            Kind::Histogram => MetricType::Histogram,
            Kind::Info => MetricType::Info,
        };
        let Page(encoder) = self;
        let encoder = encoder.encode_descriptor(family.stem, family.help, unit.as_ref(), kind)?;
        each(&mut Samples {
            kind: family.kind,
            labels: family.labels,
            encoder,
        })
    }

    /// Writes a family of one sample without labels.
    pub(super) fn whole(&mut self, family: &Family, value: u64) -> fmt::Result {
        self.family(family, |samples| samples.whole(&[], value))
    }

    /// As [`Page::whole`], of a value that has parts.
    pub(super) fn parts(&mut self, family: &Family, value: f64) -> fmt::Result {
        self.family(family, |samples| samples.parts(&[], value))
    }
}

/// The samples of a family. Labels are given as their values, in the order of the family's names.
pub(super) struct Samples<'a> {
    kind: Kind,
    labels: &'static [&'static str],
    encoder: MetricEncoder<'a>,
}

impl Samples<'_> {
    /// A number of things.
    pub(super) fn whole(&mut self, labels: &[&str], value: u64) -> fmt::Result {
        let kind = self.kind;
        self.put(labels, |encoder| match kind {
            Kind::Gauge => encoder.encode_gauge(&value),
            Kind::Counter => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
            Kind::Histogram | Kind::Info => Err(fmt::Error),
        })
    }

    /// A value that has parts.
    pub(super) fn parts(&mut self, labels: &[&str], value: f64) -> fmt::Result {
        let kind = self.kind;
        self.put(labels, |encoder| match kind {
            Kind::Gauge => encoder.encode_gauge(&value),
            Kind::Counter => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
            Kind::Histogram | Kind::Info => Err(fmt::Error),
        })
    }

    /// A text: the values of the labels.
    pub(super) fn info(&mut self, labels: &[&str]) -> fmt::Result {
        let named = self.named(labels)?;
        match self.kind {
            Kind::Info => self.encoder.encode_info(&named),
            _ => Err(fmt::Error),
        }
    }

    /// How values were spread; `of_one` makes one of those counted one of the family's unit.
    pub(super) fn spread(&mut self, labels: &[&str], of: &Histogram, of_one: f64) -> fmt::Result {
        if self.kind != Kind::Histogram {
            return Err(fmt::Error);
        }
        let edge = |at| match at == BUCKETS - 1 {
            true => f64::INFINITY,
            false => millstream_proto::storage::Histogram::edge(of.first, at) as f64 * of_one,
        };
        let buckets: Vec<(f64, u64)> = of
            .counts
            .iter()
            .enumerate()
            .map(|(at, n)| (edge(at), *n))
            .collect();
        let (sum, total) = (of.sum as f64 * of_one, of.total());
        self.put(labels, |encoder| {
            encoder.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
        })
    }

    fn named<'l>(&self, labels: &[&'l str]) -> Result<Vec<(&'static str, &'l str)>, fmt::Error> {
        if labels.len() != self.labels.len() {
            return Err(fmt::Error);
        }
        Ok(self
            .labels
            .iter()
            .copied()
            .zip(labels.iter().copied())
            .collect())
    }

    fn put(
        &mut self,
        labels: &[&str],
        encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let named = self.named(labels)?;
        if named.is_empty() {
            return encode(&mut self.encoder);
        }
        encode(&mut self.encoder.encode_family(&named)?)
    }
}
