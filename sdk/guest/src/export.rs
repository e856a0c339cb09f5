//! The macros that make a component of a plugin.
//!
//! Each makes, in the plugin's crate and for WebAssembly alone, the bindings of one world and an
//! implementation of its exports that calls the plugin's trait. Natively it only checks that the
//! type implements the trait.

/// Makes this crate a filter: a type that implements [`Filter`](crate::Filter) or
/// [`BatchFilter`](crate::BatchFilter). Once in a crate.
#[macro_export]
macro_rules! filter {
    ($plugin:ty) => {
        $crate::__component!($plugin, BatchFilter, __generate_filter, {
            impl exports::millstream::plugin::filter::Guest for Component {
                fn filter(batch: types::Batch) -> ::std::result::Result<Vec<u8>, types::Error> {
                    let verdicts = with_plugin(batch, |plugin, batch| {
                        $crate::BatchFilter::filter(plugin, batch)
                    })?;
                    Ok(verdicts.into_iter().map(|verdict| verdict as u8).collect())
                }
            }
        });
    };
}

/// Makes this crate a transform: a type that implements [`Transform`](crate::Transform) or
/// [`BatchTransform`](crate::BatchTransform). Once in a crate.
#[macro_export]
macro_rules! transform {
    ($plugin:ty) => {
        $crate::__component!($plugin, BatchTransform, __generate_transform, {
            use self::millstream::plugin::outputs::OutBatch;

            impl exports::millstream::plugin::transform::Guest for Component {
                fn transform(batch: types::Batch) -> ::std::result::Result<OutBatch, types::Error> {
                    let emitted = with_plugin(batch, |plugin, batch| {
                        let mut out = $crate::Emitter::with_capacity(batch.len());
                        $crate::BatchTransform::transform(plugin, batch, &mut out)?;
                        Ok(out.finish())
                    })?;
                    let $crate::Emitted {
                        data,
                        timestamps,
                        spans,
                        headers,
                    } = emitted;
                    Ok(OutBatch {
                        data,
                        timestamps,
                        spans,
                        headers,
                    })
                }
            }
        });
    };
}

/// Makes this crate a partitioner: a type that implements [`Partitioner`](crate::Partitioner) or
/// [`BatchPartitioner`](crate::BatchPartitioner). Once in a crate.
#[macro_export]
macro_rules! partitioner {
    ($plugin:ty) => {
        $crate::__component!($plugin, BatchPartitioner, __generate_partitioner, {
            impl exports::millstream::plugin::partitioner::Guest for Component {
                fn assign(
                    batch: types::Batch,
                    partitions: u32,
                ) -> ::std::result::Result<Vec<u32>, types::Error> {
                    with_plugin(batch, |plugin, batch| {
                        $crate::BatchPartitioner::assign(plugin, batch, partitions)
                    })
                }
            }
        });
    };
}

/// What the three kinds share: bindings, `init`, and the plugin's one instance.
#[doc(hidden)]
#[macro_export]
macro_rules! __component {
    ($plugin:ty, $kind:ident, $generate:ident, { $($exports:item)* }) => {
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            const fn implements<T: $crate::$kind>() {}
            implements::<$plugin>();
        };

        #[cfg(target_arch = "wasm32")]
        type MillstreamPlugin = $plugin;

        #[cfg(target_arch = "wasm32")]
        #[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all)]
        mod millstream_component {
            $crate::$generate!();

            use self::exports::millstream::plugin::lifecycle;
            use self::millstream::plugin::types;
            use super::MillstreamPlugin as Plugin;

            struct Component;

            ::std::thread_local! {
                // A component has one thread; this is a plain static there.
                static PLUGIN: ::std::cell::RefCell<::std::option::Option<Plugin>> =
                    const { ::std::cell::RefCell::new(None) };
            }

            impl lifecycle::Guest for Component {
                fn init(
                    context: lifecycle::InitContext,
                ) -> ::std::result::Result<lifecycle::Needs, ::std::string::String> {
                    let init = $crate::Init::from_host(
                        (context.tenant, context.module),
                        context.partition,
                        context.inputs,
                        context.outputs,
                        context.config,
                    );
                    let plugin = <Plugin as $crate::$kind>::init(&init)?;
                    PLUGIN.with(|slot| *slot.borrow_mut() = Some(plugin));
                    let needs = <Plugin as $crate::$kind>::NEEDS;
                    Ok(lifecycle::Needs::from_bits_truncate(needs.bits()))
                }
            }

            fn with_plugin<T>(
                batch: types::Batch,
                call: impl FnOnce(
                    &mut Plugin,
                    &$crate::Batch,
                ) -> ::std::result::Result<T, $crate::Error>,
            ) -> ::std::result::Result<T, types::Error> {
                let batch = $crate::Batch::from_columns(
                    (batch.input, batch.partition),
                    batch.data,
                    batch.offsets,
                    batch.timestamps,
                    batch.spans,
                    batch.headers,
                );
                PLUGIN.with(|slot| {
                    let mut slot = slot.borrow_mut();
                    let Some(plugin) = slot.as_mut() else {
                        return Err(types::Error::Fatal("called before init".to_owned()));
                    };
                    call(plugin, &batch).map_err(|error| match error {
                        $crate::Error::Retry(why) => types::Error::Retry(why),
                        $crate::Error::Fatal(why) => types::Error::Fatal(why),
                        $crate::Error::BadRecord { index, why } => {
                            types::Error::BadRecord((index as u32, why))
                        }
                    })
                })
            }

            $($exports)*

            export!(Component);
        }
    };
}
