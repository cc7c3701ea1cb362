//! Which of a model's layers are MoE layers.

use crate::error::{Error, Result};

/// Which of a model's layers are MoE layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layers {
    All,
    /// Every `step`-th, the first being `step - 1`, except those listed.
    Step {
        step: usize,
        except: Vec<usize>,
    },
    /// Every `every`-th by its number, from `first` on.
    From {
        first: usize,
        every: usize,
    },
    /// Every `period`-th, the first being `offset`.
    Period {
        period: usize,
        offset: usize,
    },
    /// From `start` to `end`, both included, those whose number after one is a multiple of `interval`.
    Range {
        start: usize,
        end: usize,
        interval: usize,
    },
    Listed(Vec<usize>),
}

impl Layers {
    pub(super) fn validate(&self) -> Result<()> {
        let (name, step) = match *self {
            Self::Step { step, .. } => ("decoder_sparse_step", step),
            Self::From { every, .. } => ("moe_layer_freq", every),
            Self::Period { period, .. } => ("expert_layer_period", period),
            Self::Range { interval, .. } => ("moe_layer_interval", interval),
            Self::All | Self::Listed(_) => return Ok(()),
        };
        match step {
            0 => Err(Error::value(name, 0, "at least 1")),
            _ => Ok(()),
        }
    }

    pub(super) fn check(&self, layer: usize) -> Result<()> {
        let (is_moe, which) = match self {
            Self::All => return Ok(()),
            Self::Step { step, except } => (
                layer % step == step - 1 && !except.contains(&layer),
                format!("every {step} (decoder_sparse_step), except {except:?} (mlp_only_layers)"),
            ),
            Self::From { first, every } => (
                layer >= *first && layer.is_multiple_of(*every),
                format!("from {first} on, every {every}"),
            ),
            Self::Period { period, offset } => (
                layer % period == offset % period,
                format!("every {period} (expert_layer_period), from {offset} on"),
            ),
            Self::Range { start, end, interval } => (
                (*start..=*end).contains(&layer) && layer.wrapping_add(1).is_multiple_of(*interval),
                format!("from {start} to {end}, every {interval}"),
            ),
            Self::Listed(layers) => (layers.contains(&layer), format!("one of {layers:?}")),
        };
        if is_moe {
            return Ok(());
        }
        Err(Error::value("layer", layer, format!("a MoE layer: {which}")))
    }
}
