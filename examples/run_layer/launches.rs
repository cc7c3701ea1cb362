//! Which kernels were launched, from the events that the crate emits.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Collects the kernels of all launches while it is the default subscriber.
#[derive(Clone, Default)]
pub struct Launches(Arc<Mutex<Vec<String>>>);

impl Launches {
    /// The kernels that `work` launches, in order.
    pub fn of<R>(work: impl FnOnce() -> R) -> (R, Vec<String>) {
        let launches = Self::default();
        let result = tracing::subscriber::with_default(launches.clone(), work);
        let kernels =
            std::mem::take(&mut *launches.0.lock().unwrap_or_else(PoisonError::into_inner));
        (result, kernels)
    }
}

/// The path of the grouped GEMM, as `--path` names it.
pub fn path(kernels: &[String]) -> Option<&'static str> {
    let names = ["hopper", "portable"];
    names.into_iter().find(|path| {
        kernels.iter().any(|kernel| kernel.starts_with(&format!("grouped_gemm_{path}")))
    })
}

impl Visit for Launches {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "kernel" {
            let mut kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kernels.push(format!("{value:?}").trim_matches('"').to_owned());
        }
    }
}

impl Subscriber for Launches {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("moe_kernels::cuda")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
