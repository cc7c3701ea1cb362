//! What the CUDA backend refuses, by the error that says so; and that it works afterwards.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use half::bf16;
use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::backend::{Backend, PartsOf};
use moe_kernels::config::{ActivationFn, GateUpLayout, SharedCombine, SharedExpert, WeightOn};
use moe_kernels::cuda::driver::{Driver, DriverError};
use moe_kernels::cuda::{CudaBuffer, CudaExperts, Path, raw};
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{
    Epilogue, ExpertShape, Experts, Gather, GroupedGemm, LayerInput, LayerParts, Output, Permute,
};
use moe_kernels::weights::{DenseExperts, LayerWeights, RouterWeights};
use moe_kernels::{Cuda, Error, MoeConfig, MoeLayer};

fn device() -> Option<Emulated> {
    emulated(Profile::sm_90(), Path::Auto, Options::checked(1))
}

/// A small layer's parts, prepared one by one.
struct Parts {
    device: Emulated,
    case: Case,
    data: Data<bf16>,
    parts: PartsOf<Cuda<EmulatedDriver>, DenseExperts<bf16>>,
}

impl Parts {
    fn new(device: Emulated) -> Self {
        let case = named("ragged [T 31");
        let data = Data::<bf16>::new(&case);
        let shape = [case.config.num_experts, case.config.hidden_size];
        let gate =
            device.backend.prepare_gate(shape, data.router_weights(), &device.stream).unwrap();
        let experts = data.dense(case.shape(), GateUpLayout::GateFirst);
        let experts =
            Backend::prepare::<DenseExperts<bf16>>(&device.backend, experts, &device.stream)
                .unwrap();
        Self { device, case, data, parts: LayerParts::new(gate, experts) }
    }

    fn typed(&self) -> Vec<bf16> {
        let layer = layer(&self.device, &self.case, &self.data);
        let mut workspace = layer.workspace(self.case.tokens).unwrap();
        forward(&self.device, &layer, &Call::new(&self.data.x), &mut workspace)
    }

    /// A forward of addresses, after `change`; the output, if it was not refused.
    fn raw(&self, change: impl FnOnce(&mut raw::Forward)) -> Result<Vec<bf16>, Error> {
        let (device, config) = (&self.device, &self.case.config);
        let (cuda, h) = (&device.backend, config.hidden_size);
        let x = device.put(&self.data.x);
        let out = device.put(&vec![bf16::POISON; self.data.x.len()]);
        let bytes = raw::workspace_bytes::<EmulatedDriver, bf16>(config, self.case.tokens)?;
        let memory = device.put(&vec![0u8; bytes]);
        // SAFETY: the buffers above hold what the addresses promise, until the end of the function, where
        // the output has been downloaded in the same stream.
        #[allow(unsafe_code)]
        unsafe {
            let mut workspace =
                raw::workspace(cuda, config, self.case.tokens, memory.address(), bytes)?;
            let mut forward = raw::Forward {
                num_tokens: self.case.tokens,
                hidden_states: x.address(),
                hidden_states_stride: h,
                output: out.address(),
                output_stride: h,
                stream: device.stream.raw().0,
                ..raw::Forward::default()
            };
            change(&mut forward);
            raw::forward(cuda, config, &self.parts, &forward, &mut workspace)?;
        }
        let mut given = vec![bf16::ZERO; self.data.x.len()];
        cuda.download(&out, &mut given, &device.stream)?;
        Ok(given)
    }
}

#[test]
fn addresses_give_what_buffers_give() {
    let Some(device) = device() else { return };
    let parts = Parts::new(device);
    let given = parts.raw(|_| {}).unwrap();
    assert_exact("raw", &bits(&given), &bits(&parts.typed()), parts.case.config.hidden_size);
}

#[test]
fn addresses_that_are_null_or_misaligned() {
    let Some(device) = device() else { return };
    let parts = Parts::new(device);
    let refuse = |name: &str, change: fn(&mut raw::Forward), given: &str| {
        refused!(parts.raw(change), Error::Value { .. }, name, given, "not null, a multiple of");
    };
    refuse("hidden_states", |f| f.hidden_states = 0, "0x0");
    refuse("hidden_states", |f| f.hidden_states += 2, "2");
    refuse("output", |f| f.output = 0, "0x0");
    refuse("output", |f| f.output += 8, "8");
    refuse("router_input", |f| (f.router_input, f.router_input_stride) = (0x1004, 40), "0x1004");
    refuse("token_ids", |f| f.token_ids = 0x1002, "0x1002");
    refuse("sequence_offsets", |f| f.sequence_offsets = 0x1001, "0x1001");
    refuse("num_tokens", |f| f.num_tokens_device = 0x1001, "0x1001");
    refuse("topk_ids", |f| (f.topk_ids, f.topk_weights) = (0x1002, 0x1000), "0x1002");
    refused!(
        parts.raw(|f| f.topk_ids = 0x1000),
        Error::Value { .. },
        "topk_weights",
        "null",
        "topk_ids"
    );
    refused!(parts.raw(|f| f.hidden_states_stride = 44), Error::Alignment { .. }, "hidden_states");
    refused!(parts.raw(|f| f.num_tokens = 32), Error::Workspace { .. }, "31", "32");
    // SAFETY: refused before anything is read.
    #[allow(unsafe_code)]
    let buffer = unsafe { CudaBuffer::<_, bf16>::from_raw(&parts.device.backend, 24, 8) };
    refused!(buffer, Error::Value { .. }, "0x18", "multiple of 16");
    let given = parts.raw(|_| {}).unwrap();
    assert_exact("afterwards", &bits(&given), &bits(&parts.typed()), 0);
}

/// A layer whose workspace has all buffers that there are.
fn with_every_buffer() -> MoeConfig {
    let mut config = MoeConfig::new(64, 32, 8, 2);
    config.experts.weight_on = WeightOn::Input;
    config.experts.latent_size = Some(24);
    config.experts.shared = Some(SharedExpert {
        intermediate_size: 40,
        activation: ActivationFn::SwiGlu,
        combine: SharedCombine::SigmoidGate,
    });
    config
}

#[test]
fn a_workspace_too_small() {
    let Some(device) = device() else { return };
    let config = with_every_buffer();
    let needed = raw::workspace_bytes::<EmulatedDriver, bf16>(&config, 16).unwrap();
    let memory = device.put(&vec![0u8; needed]);
    let make = |address, bytes| {
        // SAFETY: the memory holds `needed` bytes; less is claimed, or the call is refused.
        #[allow(unsafe_code)]
        unsafe {
            raw::workspace::<_, bf16>(&device.backend, &config, 16, address, bytes)
        }
    };
    make(memory.address(), needed).unwrap();
    let given = (needed - 1).to_string();
    refused!(make(memory.address(), needed - 1), Error::Value { .. }, given, needed, "16 tokens");
    refused!(make(0, needed), Error::Value { .. }, "workspace address", "null");
}

/// Small pieces from an odd address: nearly all of the memory is gaps.
#[test]
fn a_workspace_of_gaps() {
    let Some(device) = device() else { return };
    for config in [MoeConfig::new(8, 8, 1, 1), with_every_buffer()] {
        let bytes = raw::workspace_bytes::<EmulatedDriver, bf16>(&config, 1).unwrap();
        let memory = device.put(&vec![0u8; bytes + 1]);
        // SAFETY: the memory holds that many bytes from its second one on.
        #[allow(unsafe_code)]
        let workspace = unsafe {
            raw::workspace::<_, bf16>(&device.backend, &config, 1, memory.address() + 1, bytes)
        };
        assert_eq!(workspace.unwrap().max_tokens(), 1);
    }
}

#[test]
fn types_that_no_kernel_takes() {
    let Some(device) = device() else { return };
    let case = named("regular [");
    let data = Data::<f32>::new(&case);
    let layer = MoeLayer::new(
        device.backend.clone(),
        case.config.clone(),
        LayerWeights::new(data.router_weights(), data.dense(case.shape(), GateUpLayout::GateFirst)),
        &device.stream,
    );
    refused!(layer, Error::Unsupported { .. }, "f32", "bf16, f16");
    let plan = device.plan(&[0, 1, 1, 0], 2, 2);
    let x = device.put(&[0f32; 16]);
    let mut rows = device.put(&[0f32; 32]);
    let op = Permute::new(
        Matrix::contiguous("x", &x, 2, 8).unwrap(),
        &plan,
        MatrixMut::contiguous("rows", &mut rows, 4, 8).unwrap(),
    );
    refused!(
        device.backend.permute(op.unwrap(), &device.stream),
        Error::Unsupported { .. },
        "f32",
        "bf16, f16"
    );
}

#[test]
fn devices_that_are_too_old() {
    let mut profile = Profile::sm_80();
    profile.properties.compute_capability = 75;
    let Ok(driver) = EmulatedDriver::new(profile) else { return };
    refused!(
        Cuda::new(driver, &[&[]], Path::Auto),
        Error::Unsupported { .. },
        "compute capability 7.5",
        "8.0 and up"
    );
    let driver = EmulatedDriver::new(Profile::sm_80()).unwrap();
    refused!(
        Cuda::new(driver, &[&[]], Path::Hopper),
        Error::Unsupported { .. },
        "path hopper",
        "compute capability 8.0",
        "9.0"
    );
}

#[test]
fn more_memory_than_the_device_has() {
    let mut profile = Profile::sm_90();
    profile.properties.memory_bytes = 1 << 20;
    let Some(device) = emulated(profile, Path::Auto, Options::checked(1)) else { return };
    let big = 1 << 21;
    refused!(
        device.backend.allocate::<u8>("a big buffer", big),
        Error::OutOfMemory { .. },
        "a big buffer",
        big
    );
    let overflow = device.backend.allocate::<f32>("a huge buffer", usize::MAX / 2);
    refused!(overflow, Error::Overflow { .. }, "a huge buffer");
    assert_eq!(device.get(&device.put(&[1u32, 2, 3])), [1, 2, 3]);
}

/// An operand, the weights or the stream of another backend.
#[test]
fn buffers_of_another_device() {
    let (Some(device), Some(other)) = (device(), device()) else { return };
    let case = named("regular [");
    let data = Data::<bf16>::new(&case);
    let layer = layer(&device, &case, &data);
    let h = case.config.hidden_size;
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let mut out = device.put(&data.x);
    let foreign = other.put(&data.x);
    let input = LayerInput::new(Matrix::contiguous("x", &foreign, case.tokens, h).unwrap());
    let matrix = MatrixMut::contiguous("out", &mut out, case.tokens, h).unwrap();
    refused!(
        layer.forward(&input, Output::overwrite(matrix), &mut workspace, &device.stream),
        Error::Value { .. },
        "router input",
        "of another backend"
    );
    let x = device.put(&data.x);
    let input = LayerInput::new(Matrix::contiguous("x", &x, case.tokens, h).unwrap());
    let matrix = MatrixMut::contiguous("out", &mut out, case.tokens, h).unwrap();
    refused!(
        layer.forward(&input, Output::overwrite(matrix), &mut workspace, &other.stream),
        Error::Value { .. },
        "stream",
        "of another backend"
    );
    let router = RouterWeights::<bf16>::f32(vec![0.0; 8 * h]);
    let experts = CudaExperts::stacked(
        &device.backend,
        case.shape(),
        GateUpLayout::GateFirst,
        other.put(&vec![bf16::ZERO; 8 * 2 * 32 * h]),
        device.put(&vec![bf16::ZERO; 8 * 32 * h]),
    );
    refused!(experts, Error::Value { .. }, "gate_up", "of another backend");
    drop(router);
    let given = forward(&device, &layer, &Call::new(&data.x), &mut workspace);
    let truth = data.routing(&case.config);
    let [exact, _] = expected(&case, &data, (&truth.ids, &truth.weights), None);
    assert_close("afterwards", &wide(&given), &exact, h, 1e-2);
}

/// Experts without a gate, and their biases, used where they lie.
#[test]
fn experts_in_place_are_checked() {
    let (Some(device), Some(other)) = (device(), device()) else { return };
    let shape = ExpertShape::ungated(3, 8, 16);
    let experts = |gate_up: usize| {
        let zeros = |len| device.put(&vec![bf16::ZERO; len]);
        let (gate_up, down) = (zeros(gate_up), zeros(3 * 8 * 16));
        CudaExperts::stacked(&device.backend, shape, GateUpLayout::GateFirst, gate_up, down)
    };
    refused!(experts(2 * 3 * 16 * 8), Error::Shape { .. }, "gate_up", "[384]", "[768]");
    let memory = device.put(&[0f32; 64]);
    let bias = |len, at: u64| {
        // SAFETY: no work is submitted with it.
        #[allow(unsafe_code)]
        let buffer = unsafe { CudaBuffer::from_raw(&device.backend, memory.address() + at, len) };
        buffer.unwrap()
    };
    let with = |gate_up, down| {
        let experts = experts(3 * 16 * 8).unwrap();
        assert!(!experts.has_biases());
        experts.with_biases(&device.backend, gate_up, down)
    };
    let biased = with(bias(3 * 16, 0), bias(3 * 8, 16)).unwrap();
    assert!(biased.has_biases());
    assert_eq!(biased.bytes(), 2 * (2 * 3 * 16 * 8) + 4 * (3 * 16 + 3 * 8));
    let refusal = with(bias(2 * 3 * 16, 0), bias(3 * 8, 0));
    refused!(refusal, Error::Shape { .. }, "gate_up bias", "[48]", "[96]");
    let refusal = with(bias(3 * 16, 0), bias(3 * 16, 0));
    refused!(refusal, Error::Shape { .. }, "down bias", "[24]", "[48]");
    let refusal = with(bias(3 * 16, 0), bias(3 * 8, 4));
    refused!(refusal, Error::Value { .. }, "down bias", "a multiple of 16");
    let refusal = with(other.put(&[0f32; 3 * 16]), bias(3 * 8, 0));
    refused!(refusal, Error::Value { .. }, "gate_up bias", "of another backend");
}

/// Weights of rows that lie elsewhere.
#[test]
fn row_weights_of_another_backend_are_refused() {
    let (Some(device), Some(other)) = (device(), device()) else { return };
    let parts = Parts::new(device);
    let Parts { device, case, .. } = &parts;
    let (h, i, e) =
        (case.config.hidden_size, case.config.intermediate_size, case.config.num_experts);
    let plan = device.plan(&[0, 1], 1, e);
    let (x, mut out) = (device.put(&vec![bf16::ZERO; 2 * h]), device.put(&vec![bf16::ZERO; 4 * i]));
    let weights = other.put(&[1f32; 2]);
    let op = GroupedGemm::gate_up(
        Matrix::contiguous("x", &x, 2, h).unwrap(),
        Gather::Packed,
        &plan,
        &parts.parts.experts,
        Epilogue::Store,
        MatrixMut::contiguous("out", &mut out, 2, 2 * i).unwrap(),
    );
    let op = op.unwrap().with_row_weights(&weights).unwrap();
    let given = device.backend.grouped_gemm::<DenseExperts<bf16>>(op, &device.stream);
    refused!(given, Error::Value { .. }, "row_weights", "of another backend");
}

/// A kernel's fault poisons the context, and every later call says which fault it was.
#[test]
fn a_lost_context_says_so() {
    let Some(device) = device() else { return };
    let parts = Parts::new(device);
    // An address that is aligned, and nobody's.
    let error = parts.raw(|forward| forward.hidden_states = 1 << 44).unwrap_err();
    let Error::Device(source) = &error else { panic!("{error:?}") };
    assert!(matches!(source.downcast_ref(), Some(DriverError::KernelFault { .. })), "{error:?}");
    let error = parts.device.backend.allocate::<u8>("anything", 16).unwrap_err();
    let Error::Device(source) = &error else { panic!("{error:?}") };
    assert!(
        matches!(source.downcast_ref(), Some(DriverError::ContextPoisoned { .. })),
        "{error:?}"
    );
    assert!(parts.device.backend.driver().alloc(16).is_err());
}
