//! The Hopper kernels: tensor maps of the weights, of packed rows and of the output.

use crate::element::{DType, Float};
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::ops::{ExpertShape, Projection};

use super::super::abi::ExpertMatrices;
use super::super::driver::{
    DevicePtr, Driver, KernelArg, TensorElement, TensorMap, TensorMapDesc, TensorSwizzle,
};
use super::super::tiles::{EpilogueKind, Family, Tile};
use super::super::weights::Matrices;
use super::super::{Cuda, CudaBuffer, CudaStream, Path};
use super::Launch;

/// Elements of depth in a box: the 128 bytes of the swizzle.
const DEPTH: u32 = 64;
/// What a consumer warpgroup of the prefill kernels stores at a time, under the swizzle of 64 bytes.
const OUT_BOX: [u32; 3] = [32, 1, 64];

/// One projection's weights as TMA reads them: for each shape of box, by family and columns.
pub(in super::super) struct TensorMaps<D: Driver> {
    boxes: Vec<(Family, u32, WeightMaps<D>)>,
}

enum WeightMaps<D: Driver> {
    /// One map of all experts.
    Stacked(TensorMap),
    /// A map for each expert, in device memory: 32 u32 each.
    Table(CudaBuffer<D, u32>),
}

impl<D: Driver + 'static> TensorMaps<D> {
    /// `None` where no Hopper kernel can run. `addresses` are the stack's, or each expert's;
    /// `stream` is given with the latter.
    pub(in super::super) fn encode<T: Float>(
        cuda: &Cuda<D>,
        projection: Projection,
        shape: ExpertShape,
        place: &ExpertMatrices,
        addresses: &[DevicePtr],
        stream: Option<&CudaStream<D>>,
    ) -> Result<Option<Self>> {
        let hopper = |tile: &&Tile| {
            matches!(tile.family, Family::HopperPrefill | Family::HopperDecode)
                && tile.fits(cuda.properties())
        };
        if cuda.path() == Path::Portable {
            return Ok(None);
        }
        let mut boxes: Vec<(Family, u32, WeightMaps<D>)> = Vec::new();
        for tile in cuda.tiles().iter().filter(hopper) {
            if boxes
                .iter()
                .any(|&(family, columns, _)| (family, columns) == (tile.family, tile.columns))
            {
                continue;
            }
            let encode = |&base: &DevicePtr, experts| {
                let desc =
                    weight_map(tile, projection, shape, place, element::<T>(), base, experts);
                cuda.driver().encode_tensor_map(&desc)
            };
            let maps = match stream {
                None => WeightMaps::Stacked(encode(&addresses[0], shape.num_experts)?),
                Some(stream) => {
                    let mut words = Vec::with_capacity(32 * addresses.len());
                    for address in addresses {
                        let TensorMap(map) = encode(address, 1)?;
                        words.extend(
                            map.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]),
                        );
                    }
                    WeightMaps::Table(cuda.buffer_from("table of tensor maps", &words, stream)?)
                }
            };
            boxes.push((tile.family, tile.columns, maps));
        }
        Ok((!boxes.is_empty()).then_some(Self { boxes }))
    }
}

/// `experts` matrices of one projection from `base` on, in the boxes that the tile's kernel loads.
fn weight_map(
    tile: &Tile,
    projection: Projection,
    shape: ExpertShape,
    place: &ExpertMatrices,
    element: TensorElement,
    base: DevicePtr,
    experts: usize,
) -> TensorMapDesc {
    let ExpertShape { hidden_size, intermediate_size, .. } = shape;
    let (wide, tall, experts) = (hidden_size as u64, intermediate_size as u64, experts as u64);
    let bytes = u64::from(element.bytes());
    let (row, expert) = (place.row_stride * bytes, place.expert_stride * bytes);
    // The half that lies first; the kernels are told which one it is.
    let first = place.gate_offset.min(place.up_offset);
    let half = place.gate_offset.abs_diff(place.up_offset) * bytes;
    let (dims, strides, box_dims) = match (projection, tile.family) {
        (Projection::Down, _) => {
            (vec![tall, wide, experts], vec![row, expert], vec![DEPTH, tile.columns, 1])
        }
        // Eight rows of one half, then of the other: both of a column reach one thread.
        (Projection::GateUp, Family::HopperDecode) if shape.gated => (
            vec![wide, 8, 2, tall / 8, experts],
            vec![row, half, 8 * row, expert],
            vec![DEPTH, 8, 2, tile.columns / 16, 1],
        ),
        (Projection::GateUp, _) if shape.gated => (
            vec![wide, tall, 2, experts],
            vec![row, half, expert],
            vec![DEPTH, tile.columns / 2, 1, 1],
        ),
        // One matrix, in as many dimensions.
        (Projection::GateUp, Family::HopperDecode) => (
            vec![wide, tall, 1, 1, experts],
            vec![row, expert, expert, expert],
            vec![DEPTH, tile.columns, 1, 1, 1],
        ),
        (Projection::GateUp, _) => (
            vec![wide, tall, 1, experts],
            vec![row, expert, expert],
            vec![DEPTH, tile.columns / 2, 1, 1],
        ),
    };
    let (base, swizzle) = (base.offset(first * bytes), TensorSwizzle::B128);
    TensorMapDesc { base, element, dims, strides, box_dims, swizzle }
}

fn element<T: Float>() -> TensorElement {
    if T::DTYPE == DType::F16 { TensorElement::F16 } else { TensorElement::Bf16 }
}

pub(super) fn run<D: Driver + 'static, T: Float>(
    launch: &Launch<'_, D>,
    weights: &Matrices<D, T>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let &Launch { cuda, tile, epilogue, mut args, x_rows, max_rows, config, .. } = launch;
    let element = element::<T>();
    let bytes = u64::from(element.bytes());
    launch.check_x_stride()?;
    let encode = |desc: TensorMapDesc| cuda.driver().encode_tensor_map(&desc);

    let key = (tile.family, tile.columns);
    let maps = weights.maps.as_ref().into_iter().flat_map(|maps| &maps.boxes);
    let weights = match maps.clone().find(|&&(family, columns, _)| (family, columns) == key) {
        Some((.., WeightMaps::Stacked(map))) => *map,
        Some((.., WeightMaps::Table(table))) => {
            args.weight_maps = table.address();
            TensorMap([0; 16])
        }
        None => {
            return Err(Error::Unsupported {
                what: format!("{} with these weights", launch.kernel()),
                supported: "weights prepared by a backend of path auto or hopper".to_owned(),
            });
        }
    };
    let (columns, depth) = (u64::from(args.columns), u64::from(args.depth));
    let x = match epilogue {
        EpilogueKind::Store => Some(encode(TensorMapDesc {
            base: DevicePtr(args.x),
            element,
            dims: vec![depth, x_rows as u64],
            strides: vec![args.x_stride * bytes],
            box_dims: vec![DEPTH, tile.rows],
            swizzle: TensorSwizzle::B128,
        })?),
        EpilogueKind::GateUp => None,
    };
    let halves = if args.gated == 1 && args.activated == 0 { 2 } else { 1 };
    let out = match tile.family {
        Family::HopperPrefill => Some(encode(TensorMapDesc {
            base: DevicePtr(args.out),
            element,
            dims: vec![columns, halves, max_rows as u64],
            strides: vec![columns * bytes, args.out_stride * bytes],
            box_dims: OUT_BOX.to_vec(),
            swizzle: TensorSwizzle::B64,
        })?),
        _ => None,
    };
    let maps = [x.as_ref(), Some(&weights), out.as_ref()];
    let mut parameters: Vec<KernelArg<'_>> =
        maps.into_iter().flatten().map(KernelArg::new).collect();
    parameters.push(KernelArg::new(&args));
    // SAFETY: the contract has checked that x, out, the plan and the weights hold what the arguments
    // and the tensor maps say; they are borrowed by it, and the memory's owner keeps them until the
    // stream's work is done.
    unsafe { cuda.launch(&launch.kernel(), config, &parameters, stream) }
}
