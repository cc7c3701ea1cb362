//! Grouped GEMM: from a checked contract to a launch.

mod hopper;
mod portable;
mod quantised;

pub(super) use hopper::TensorMaps;

use crate::config::ActivationFn;
use crate::element::{DType, Float};
use crate::error::{Error, Result};
use crate::ops::{Epilogue, Experts, Gather, GroupedGemm, Projection};

use super::abi::{ExpertMatrices, GroupedGemmArgs};
use super::activation;
use super::context::float16;
use super::driver::{Driver, LaunchConfig};
use super::tiles::{EpilogueKind, Problem, Tile, choose};
use super::weights::{Matrices, Weights};
use super::{Cuda, CudaExperts, CudaStream};

/// A grouped GEMM that is about to be launched.
struct Launch<'a, D: Driver> {
    cuda: &'a Cuda<D>,
    tile: &'static Tile,
    epilogue: EpilogueKind,
    dtype: DType,
    args: GroupedGemmArgs,
    /// Rows of x, which a tensor map of it covers.
    x_rows: usize,
    /// R, the rows that `out` has room for.
    max_rows: usize,
    config: LaunchConfig,
}

impl<D: Driver> Launch<'_, D> {
    fn kernel(&self) -> String {
        self.tile.kernel(self.epilogue, self.dtype)
    }

    /// For kernels that gather rows of x by strides of 32 bits.
    fn check_x_stride(&self) -> Result<()> {
        let bytes = self.dtype.size() as u64;
        if self.args.x_stride * bytes > u64::from(u32::MAX) {
            let expected = format!("less than {}", (1u64 << 32) / bytes);
            let what = "row stride of the grouped GEMM's input";
            return Err(Error::value(what, self.args.x_stride, expected));
        }
        Ok(())
    }
}

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: GroupedGemm<'_, Cuda<D>, T, CudaExperts<D, T>>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let dtype = float16::<T>("grouped GEMM")?;
    let GroupedGemm { x, gather, plan, experts, projection, epilogue, out, row_weights } = op;
    let shape = experts.shape();
    let (weights, columns, depth) = match projection {
        Projection::GateUp => (&experts.gate_up, shape.intermediate_size, shape.hidden_size),
        Projection::Down => (&experts.down, shape.hidden_size, shape.intermediate_size),
    };
    let (kind, gated) = match projection {
        Projection::GateUp => (EpilogueKind::GateUp, shape.gated),
        Projection::Down => (EpilogueKind::Store, false),
    };
    let bias = experts.biases.as_ref().map_or(0, |biases| match projection {
        Projection::GateUp => biases.gate_up.address(),
        Projection::Down => biases.down.address(),
    });
    let row_weights = row_weights.map_or(0, |weights| weights.address());
    let max_rows = plan.num_assignments();
    if max_rows == 0 {
        return Ok(());
    }
    let problem = Problem {
        max_rows,
        num_experts: shape.num_experts,
        columns,
        depth,
        gated,
        adjusted: bias != 0 || row_weights != 0,
        codes: match weights {
            Weights::Dense(_) => None,
            Weights::Quantised(projection) => Some(projection.format.into()),
        },
    };
    let device = cuda.properties();
    let tile = choose(cuda.tiles(), &problem, device, cuda.path())?;
    let (x_layout, (out, out_layout)) = (x.layout(), out.into_parts());
    let function = match epilogue {
        Epilogue::Activation(function) => function,
        Epilogue::Store => ActivationFn::SwiGlu,
    };
    let place = match weights {
        Weights::Dense(Matrices { place, .. }) if gated => *place,
        // The halves of a tile are neighbours.
        Weights::Dense(Matrices { place, .. }) => ExpertMatrices {
            up_offset: place.gate_offset + u64::from(tile.columns / 2) * place.row_stride,
            ..*place
        },
        Weights::Quantised(_) => ExpertMatrices::default(),
    };
    let args = GroupedGemmArgs {
        x: x.buffer().at(x_layout.offset),
        out: out.at(out_layout.offset),
        token_of_row: match gather {
            Gather::TokenOfRow => plan.token_of_row.address(),
            Gather::Packed => 0,
        },
        expert_offsets: plan.expert_offsets.address(),
        bias,
        row_weights,
        x_stride: x_layout.row_stride as u64,
        out_stride: out_layout.row_stride as u64,
        weights: place,
        weight_maps: 0,
        activation: activation::params(function),
        num_experts: shape.num_experts as u32,
        columns: columns as u32,
        depth: depth as u32,
        gated: gated.into(),
        activated: matches!(epilogue, Epilogue::Activation(_)).into(),
        up_first: u32::from(gated && place.up_offset < place.gate_offset),
    };
    let blocks = device.sm_count * tile.resident_blocks(device);
    let grid = problem.max_tiles(tile).min(u64::from(blocks)) as u32;
    let launch = Launch {
        cuda,
        tile,
        epilogue: kind,
        dtype,
        args,
        x_rows: x_layout.rows,
        max_rows,
        config: LaunchConfig::linear(grid, tile.threads).with_shared(tile.shared_bytes),
    };
    match weights {
        Weights::Quantised(projection) => quantised::run(&launch, projection, stream),
        Weights::Dense(matrices) if tile.family.is_hopper() => {
            hopper::run::<D, T>(&launch, matrices, stream)
        }
        Weights::Dense(_) => portable::run(&launch, stream),
    }
}
