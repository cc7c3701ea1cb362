//! The layer for callers that have addresses: engines with tensors, streams and workspaces of their
//! own.
//!
//! ```text
//! let bytes = raw::workspace_bytes::<D, bf16>(&config, max_tokens)?;      // allocate so many yourself
//! let mut workspace = unsafe { raw::workspace(&cuda, &config, max_tokens, address, bytes)? };
//! unsafe { raw::forward(&cuda, &config, &parts, &forward, &mut workspace)? };
//! ```

use crate::backend::{Backend, PartsOf};
use crate::config::MoeConfig;
use crate::element::{Element, Float};
use crate::error::{Error, Result, checked_product};
use crate::memory::{Allocator, Layout, Matrix, MatrixMut};
use crate::ops::{Layer, LayerInput, Output, Routing, Workspace};
use crate::weights::DenseExperts;

use super::driver::Driver;
use super::{Cuda, CudaBuffer, CudaStream};

/// Every buffer in a workspace starts on a multiple of this.
const PIECE_ALIGNMENT: u64 = 256;

/// Cuts buffers from a piece of the caller's memory, one after the other.
struct Carver<'a, D: Driver> {
    cuda: &'a Cuda<D>,
    next: u64,
    end: u64,
}

impl<D: Driver + 'static> Allocator<Cuda<D>> for Carver<'_, D> {
    fn allocate<T: Element>(&mut self, what: &str, len: usize) -> Result<CudaBuffer<D, T>> {
        let overflow = || Error::Overflow { what: what.to_owned() };
        let bytes = checked_product(what, &[len, size_of::<T>()])? as u64;
        let address = self.next.next_multiple_of(PIECE_ALIGNMENT);
        let end = address.checked_add(bytes).ok_or_else(overflow)?;
        if end > self.end {
            return Err(Error::value(
                "workspace",
                format!("{} bytes short at {what}", end - self.end),
                "the bytes that workspace_bytes says",
            ));
        }
        self.next = end;
        // SAFETY: the caller of `workspace` vouches for the whole piece, which this is part of; pieces
        // do not overlap.
        unsafe { CudaBuffer::from_raw(self.cuda, address, len) }
    }
}

/// Bytes that [`workspace`] needs, whatever the alignment of its address.
///
/// # Errors
/// As [`Workspace::bytes`].
pub fn workspace_bytes<D: Driver + 'static, T: Float>(
    config: &MoeConfig,
    max_tokens: usize,
) -> Result<usize> {
    // Each buffer may start after a gap.
    let gaps = Workspace::<Cuda<D>, T>::BUFFERS * PIECE_ALIGNMENT as usize;
    let bytes = Workspace::<Cuda<D>, T>::bytes(config, max_tokens)?;
    bytes.checked_add(gaps).ok_or_else(|| Error::Overflow { what: "workspace".to_owned() })
}

/// A workspace in memory of the caller's, for up to `max_tokens` tokens.
///
/// # Errors
/// [`Error::Value`] if `bytes` are too few, or for a null address; otherwise as [`Workspace::bytes`].
///
/// # Safety
/// As [`CudaBuffer::from_raw`], for `bytes` bytes at `address`.
pub unsafe fn workspace<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    config: &MoeConfig,
    max_tokens: usize,
    address: u64,
    bytes: usize,
) -> Result<Workspace<Cuda<D>, T>> {
    if address == 0 {
        return Err(Error::value("workspace address", "null", "device memory"));
    }
    let needed = workspace_bytes::<D, T>(config, max_tokens)?;
    if bytes < needed {
        let expected = format!("at least {needed}, for {max_tokens} tokens");
        return Err(Error::value("workspace bytes", bytes, expected));
    }
    let end = address
        .checked_add(bytes as u64)
        .ok_or_else(|| Error::Overflow { what: "workspace".to_owned() })?;
    Workspace::in_memory(&mut Carver { cuda, next: address, end }, config, max_tokens)
}

/// The operands of [`forward`]: device addresses, and elements from one row's start to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward {
    /// T.
    pub num_tokens: usize,
    /// A u32 on the device that says how many of them are there; 0: all.
    pub num_tokens_device: u64,
    /// `[T, H]`.
    pub hidden_states: u64,
    /// A multiple of 16 bytes.
    pub hidden_states_stride: usize,
    /// `[T, H]`; may not overlap `hidden_states`.
    pub output: u64,
    /// A multiple of 16 bytes.
    pub output_stride: usize,
    /// Add to what `output` holds.
    pub accumulate: bool,
    /// `i32 [T, K]`, routing of the caller's; 0: the layer routes.
    pub topk_ids: u64,
    /// `f32 [T, K]`, with `topk_ids`.
    pub topk_weights: u64,
    /// `i32 [expert_map_len]`: a global id's local one, or -1; 0: none.
    pub expert_map: u64,
    /// Global experts.
    pub expert_map_len: usize,
    /// `[T, H]`: what the router sees, where that is not `hidden_states`; 0: none.
    pub router_input: u64,
    /// A multiple of 16 bytes.
    pub router_input_stride: usize,
    /// `u32 [T]`, vocabulary ids, for a router with a hash table; 0: none.
    pub token_ids: u64,
    /// `u32 [num_sequences + 1]`, for capacities by sequence; 0: none.
    pub sequence_offsets: u64,
    /// Sequences.
    pub num_sequences: usize,
    /// `CUstream`.
    pub stream: u64,
}

/// One forward of a layer. Nothing is allocated and nothing waits.
///
/// # Errors
/// As [`Layer::new`], [`Error::Value`] for null or misaligned addresses, and failures of the device.
///
/// # Safety
/// Every address holds what its field says, on `cuda`'s device, until the stream has done the work.
pub unsafe fn forward<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    config: &MoeConfig,
    parts: &PartsOf<Cuda<D>, DenseExperts<T>>,
    forward: &Forward,
    workspace: &mut Workspace<Cuda<D>, T>,
) -> Result<()> {
    config.validate()?;
    let MoeConfig { hidden_size, top_k, .. } = *config;
    let rows = forward.num_tokens;
    let assignments = config.num_assignments(rows)?;
    let tokens = |stride| Layout { rows, cols: hidden_size, row_stride: stride, offset: 0 };
    let (x_layout, out_layout) =
        (tokens(forward.hidden_states_stride), tokens(forward.output_stride));
    // SAFETY: the caller vouches for addresses and extents.
    let stream = unsafe { CudaStream::from_raw(cuda, forward.stream) };
    // SAFETY: as above.
    let x = unsafe { raw_buffer::<D, T>(cuda, "hidden_states", forward.hidden_states, &x_layout)? };
    // SAFETY: as above.
    let mut out = unsafe { raw_buffer::<D, T>(cuda, "output", forward.output, &out_layout)? };
    let pairs = Layout::contiguous(rows, top_k);
    // SAFETY: as above.
    let ids = unsafe { optional::<D, i32>(cuda, "topk_ids", forward.topk_ids, assignments)? };
    // SAFETY: as above.
    let weights =
        unsafe { optional::<D, f32>(cuda, "topk_weights", forward.topk_weights, assignments)? };
    // SAFETY: as above.
    let map = unsafe {
        optional::<D, i32>(cuda, "expert_map", forward.expert_map, forward.expert_map_len)?
    };
    // SAFETY: as above.
    let count = unsafe { optional::<D, u32>(cuda, "num_tokens", forward.num_tokens_device, 1)? };

    let router_layout = tokens(forward.router_input_stride);
    let router_input = match forward.router_input {
        0 => None,
        address => {
            // SAFETY: as above.
            let buffer =
                unsafe { raw_buffer::<D, T>(cuda, "router_input", address, &router_layout) };
            Some(buffer?)
        }
    };
    // SAFETY: as above.
    let token_ids = unsafe { optional::<D, u32>(cuda, "token_ids", forward.token_ids, rows)? };
    let bounds = forward.num_sequences.saturating_add(1);
    // SAFETY: as above.
    let offsets =
        unsafe { optional::<D, u32>(cuda, "sequence_offsets", forward.sequence_offsets, bounds)? };

    let mut input = LayerInput::new(Matrix::new("hidden_states", &x, x_layout)?);
    if let Some(router_input) = &router_input {
        input.router_input = Some(Matrix::new("router_input", router_input, router_layout)?);
    }
    input.token_ids = token_ids.as_ref();
    input.sequence_offsets = offsets.as_ref();
    input.routing = match (&ids, &weights) {
        (Some(ids), Some(weights)) => Some(Routing {
            topk_ids: Matrix::new("topk_ids", ids, pairs)?,
            topk_weights: Matrix::new("topk_weights", weights, pairs)?,
        }),
        (None, None) => None,
        (Some(_), None) => return Err(Error::value("topk_weights", "null", "given with topk_ids")),
        (None, Some(_)) => return Err(Error::value("topk_ids", "null", "given with topk_weights")),
    };
    if let Some(map) = &map {
        input.expert_map = Some(Matrix::contiguous("expert_map", map, 1, forward.expert_map_len)?);
    }
    input.num_tokens = count.as_ref();
    let matrix = MatrixMut::new("output", &mut out, out_layout)?;
    let output = match forward.accumulate {
        true => Output::accumulate(matrix),
        false => Output::overwrite(matrix),
    };
    let op = Layer::new(config, &input, parts, output, workspace)?;
    cuda.layer::<DenseExperts<T>>(op, &stream)
}

/// # Safety
/// As [`CudaBuffer::from_raw`], for the elements that `layout` reaches.
unsafe fn raw_buffer<D: Driver, T: Element>(
    cuda: &Cuda<D>,
    operand: &str,
    address: u64,
    layout: &Layout,
) -> Result<CudaBuffer<D, T>> {
    let len = match layout.rows.checked_sub(1) {
        None => 0,
        Some(gaps) => checked_product(operand, &[gaps, layout.row_stride])?
            .checked_add(layout.cols)
            .ok_or_else(|| Error::Overflow { what: operand.to_owned() })?,
    };
    // SAFETY: the caller's promise.
    unsafe { CudaBuffer::from_raw(cuda, address, len) }.map_err(|error| named(operand, error))
}

/// # Safety
/// As [`CudaBuffer::from_raw`], where the address is not 0.
unsafe fn optional<D: Driver, T: Element>(
    cuda: &Cuda<D>,
    operand: &str,
    address: u64,
    len: usize,
) -> Result<Option<CudaBuffer<D, T>>> {
    if address == 0 {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { CudaBuffer::from_raw(cuda, address, len) }
        .map(Some)
        .map_err(|error| named(operand, error))
}

/// The error of an address, with its operand's name.
fn named(operand: &str, error: Error) -> Error {
    match error {
        Error::Value { given, expected, .. } => {
            Error::Value { name: format!("{operand}: device address"), given, expected }
        }
        other => other,
    }
}
