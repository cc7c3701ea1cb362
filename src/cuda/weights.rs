//! Weights in device memory: uploaded, or used where the caller has them.

use std::fmt;

use crate::config::{GateUpLayout, check_sizes};
use crate::element::{Element, Float};
use crate::error::{Error, Result, checked_product};
use crate::memory::{Buffer, Memory, ROW_ALIGNMENT};
use crate::ops::{ExpertShape, Experts, Gate, GateParts, Projection};
use crate::weights::{
    DenseExperts, ExpertBiases, ExpertMatrix, QuantisedExperts, RouterMatrix, RouterWeights,
};

use super::abi::ExpertMatrices;
use super::buffer::Place;
use super::context::float16;
use super::driver::{DevicePtr, Driver};
use super::grouped_gemm::TensorMaps;
use super::quantised::QuantisedProjection;
use super::{Cuda, CudaBuffer, CudaStream};

/// A router's weights in device memory: a matrix `[E, H]`, and what
/// [`RouterConfig`](crate::config::RouterConfig) says that there is besides. E counts experts without
/// weights too.
pub struct CudaGate<D: Driver, T: Element> {
    shape: [usize; 2],
    pub(super) values: GateValues<D, T>,
    pub(super) bias: Option<CudaBuffer<D, f32>>,
    pub(super) selection_bias: Option<CudaBuffer<D, f32>>,
    pub(super) expert_scale: Option<CudaBuffer<D, f32>>,
    pub(super) hash_table: Option<CudaBuffer<D, i32>>,
    input_scale: bool,
}

pub(super) enum GateValues<D: Driver, T: Element> {
    F32(CudaBuffer<D, f32>),
    Model(CudaBuffer<D, T>),
}

impl<D: Driver, T: Element> fmt::Debug for CudaGate<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = match &self.values {
            GateValues::F32(_) => f32::DTYPE,
            GateValues::Model(_) => T::DTYPE,
        };
        write!(f, "CudaGate {dtype} {:?}", self.shape)
    }
}

impl<D: Driver, T: Element> Gate for CudaGate<D, T> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn parts(&self) -> GateParts {
        GateParts {
            bias: self.bias.is_some(),
            selection_bias: self.selection_bias.is_some(),
            expert_scale: self.expert_scale.is_some(),
            input_scale: self.input_scale,
            hash_table: self.hash_table.as_ref().map_or(0, Buffer::len),
        }
    }

    fn bytes(&self) -> usize {
        let matrix = match &self.values {
            GateValues::F32(buffer) => buffer.len() * size_of::<f32>(),
            GateValues::Model(buffer) => buffer.len() * size_of::<T>(),
        };
        let vectors: usize = self.vectors().map(|(_, buffer)| buffer.len()).sum();
        matrix + size_of::<f32>() * (vectors + self.parts().hash_table)
    }
}

impl<D: Driver, T: Element> CudaGate<D, T> {
    fn vectors(&self) -> impl Iterator<Item = (&'static str, &CudaBuffer<D, f32>)> {
        [
            ("router bias", &self.bias),
            ("router selection_bias", &self.selection_bias),
            ("router expert_scale", &self.expert_scale),
        ]
        .into_iter()
        .filter_map(|(what, buffer)| Some((what, buffer.as_ref()?)))
    }
}

impl<D: Driver + 'static, T: Float> CudaGate<D, T> {
    pub(super) fn places(&self) -> impl Iterator<Item = Place<'_, D>> {
        let matrix = match &self.values {
            GateValues::F32(buffer) => buffer.place("gate"),
            GateValues::Model(buffer) => buffer.place("gate"),
        };
        let vectors = self.vectors().map(|(what, buffer)| buffer.place(what));
        let table = self.hash_table.as_ref().map(|table| table.place("hash_table"));
        std::iter::once(matrix).chain(vectors).chain(table)
    }

    pub(super) fn upload(
        cuda: &Cuda<D>,
        shape: [usize; 2],
        weights: RouterWeights<T>,
        stream: &CudaStream<D>,
    ) -> Result<Self> {
        let RouterWeights { matrix, bias, selection_bias, expert_scale, input_scale, hash_table } =
            weights.folded(shape)?;
        let mut gate = match matrix {
            RouterMatrix::F32(values) => {
                Self::f32(shape, cuda.buffer_from("gate", &values, stream)?)
            }
            RouterMatrix::Model(values) => {
                Self::model(shape, cuda.buffer_from("gate", &values, stream)?)
            }
        }?;
        if let Some(bias) = bias {
            gate = gate.with_bias(cuda.buffer_from("router bias", &bias, stream)?)?;
        }
        if let Some(bias) = selection_bias {
            let bias = cuda.buffer_from("router selection_bias", &bias, stream)?;
            gate = gate.with_selection_bias(bias)?;
        }
        if let Some(scale) = expert_scale {
            let scale = cuda.buffer_from("router expert_scale", &scale, stream)?;
            gate = gate.with_expert_scale(scale)?;
        }
        if let Some(table) = hash_table {
            gate = gate.with_hash_table(cuda.buffer_from("hash_table", &table, stream)?);
        }
        if input_scale.is_some() {
            gate = gate.with_input_scale_folded();
        }
        Ok(gate)
    }

    /// A gate that routes in f32, used where it lies.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::Unsupported`] if `T` is not a 16-bit type.
    pub fn f32(shape: [usize; 2], values: CudaBuffer<D, f32>) -> Result<Self> {
        Self::checked(shape, values.len(), values.address(), GateValues::F32(values))
    }

    /// A gate in the type of the layer, used where it lies.
    ///
    /// # Errors
    /// As [`CudaGate::f32`].
    pub fn model(shape: [usize; 2], values: CudaBuffer<D, T>) -> Result<Self> {
        Self::checked(shape, values.len(), values.address(), GateValues::Model(values))
    }

    /// `[E]`: a bias on the logits.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length.
    pub fn with_bias(self, bias: CudaBuffer<D, f32>) -> Result<Self> {
        self.expect("router bias", &bias)?;
        Ok(Self { bias: Some(bias), ..self })
    }

    /// `[E]`: a bias on the scores, for the choice alone.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length.
    pub fn with_selection_bias(self, bias: CudaBuffer<D, f32>) -> Result<Self> {
        self.expect("router selection_bias", &bias)?;
        Ok(Self { selection_bias: Some(bias), ..self })
    }

    /// `[E]`: a factor on the weights.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length.
    pub fn with_expert_scale(self, scale: CudaBuffer<D, f32>) -> Result<Self> {
        self.expect("router expert_scale", &scale)?;
        Ok(Self { expert_scale: Some(scale), ..self })
    }

    /// `[vocab_size, K]`: the experts of each token of the vocabulary. An entry outside `0..E` is none.
    pub fn with_hash_table(self, table: CudaBuffer<D, i32>) -> Self {
        Self { hash_table: Some(table), ..self }
    }

    /// Says that the norm's `input_scale [H]` is contained in the matrix: each row was multiplied by it
    /// element by element, in f32, before. A router with a norm takes no other gate.
    pub fn with_input_scale_folded(self) -> Self {
        Self { input_scale: true, ..self }
    }

    fn expect(&self, operand: &str, buffer: &CudaBuffer<D, f32>) -> Result<()> {
        let experts = self.shape[0];
        if buffer.len() != experts {
            return Err(Error::shape(operand, [experts], [buffer.len()]));
        }
        Ok(())
    }

    fn checked(
        shape: [usize; 2],
        len: usize,
        address: u64,
        values: GateValues<D, T>,
    ) -> Result<Self> {
        float16::<T>("router")?;
        let expected = checked_product("gate", &shape)?;
        if len != expected {
            return Err(Error::shape("router weight", [expected], [len]));
        }
        if !address.is_multiple_of(ROW_ALIGNMENT as u64) {
            let given = format!("device address {address:#x}");
            return Err(Error::value("router weight", given, "a multiple of 16"));
        }
        Ok(Self {
            shape,
            values,
            bias: None,
            selection_bias: None,
            expert_scale: None,
            hash_table: None,
            input_scale: false,
        })
    }
}

/// Experts' weights in device memory. Dense ones are in the layout in which checkpoints and engines have
/// them: `gate_up [E, 2I, H]`, or `[E, I, H]` without a gate, and `down [E, H, I]`, stacked or one
/// allocation for each expert. Quantised ones are repacked by [`Backend::prepare`](crate::Backend::prepare),
/// in as many bytes but for rounding up.
pub struct CudaExperts<D: Driver, T: Element> {
    shape: ExpertShape,
    pub(super) gate_up: Weights<D, T>,
    pub(super) down: Weights<D, T>,
    pub(super) biases: Option<CudaBiases<D>>,
}

/// One projection of all experts.
pub(super) enum Weights<D: Driver, T: Element> {
    Dense(Matrices<D, T>),
    Quantised(QuantisedProjection<D>),
}

impl<D: Driver, T: Element> Weights<D, T> {
    fn bytes(&self) -> usize {
        match self {
            Self::Dense(matrices) => {
                matrices.buffers.iter().map(|buffer| buffer.len() * size_of::<T>()).sum()
            }
            Self::Quantised(projection) => projection.bytes(),
        }
    }

    fn format(&self) -> String {
        match self {
            Self::Dense(Matrices { place, .. }) if place.table == 0 => "stacked".to_owned(),
            Self::Dense(_) => "table".to_owned(),
            Self::Quantised(projection) => projection.format.to_string(),
        }
    }
}

/// Experts' biases: gate_up `[E, 2I]` or `[E, I]`, down `[E, H]`.
pub(super) struct CudaBiases<D: Driver> {
    pub(super) gate_up: CudaBuffer<D, f32>,
    pub(super) down: CudaBuffer<D, f32>,
}

/// One projection of all experts, and what keeps it in memory.
pub(super) struct Matrices<D: Driver, T: Element> {
    /// As the kernels read it.
    pub(super) place: ExpertMatrices,
    /// As TMA reads it; none where no Hopper kernel can run.
    pub(super) maps: Option<TensorMaps<D>>,
    /// One buffer, or one for each expert.
    buffers: Vec<CudaBuffer<D, T>>,
    /// The addresses of the experts, where each has a buffer of its own: pairs of u32.
    _table: Option<CudaBuffer<D, u32>>,
}

impl<D: Driver, T: Element> fmt::Debug for CudaExperts<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaExperts")
            .field("dtype", &T::DTYPE)
            .field("shape", &self.shape)
            .field("weights", &self.gate_up.format())
            .field("biases", &self.biases.is_some())
            .finish_non_exhaustive()
    }
}

impl<D: Driver, T: Element> Experts for CudaExperts<D, T> {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn has_biases(&self) -> bool {
        self.biases.is_some()
    }

    fn bytes(&self) -> usize {
        let biases = self.biases.iter().map(|biases| biases.gate_up.len() + biases.down.len());
        let biases = biases.sum::<usize>() * size_of::<f32>();
        self.gate_up.bytes() + self.down.bytes() + biases
    }
}

impl<D: Driver + 'static, T: Float> CudaExperts<D, T> {
    pub(super) fn place(&self) -> Place<'_, D> {
        match &self.down {
            Weights::Dense(matrices) => matrices.buffers[0].place("experts"),
            Weights::Quantised(projection) => projection.place(),
        }
    }

    /// Experts stacked in two buffers, used where they lie: `gate_up [E, 2I, H]` with the rows of
    /// gate and up in the order of `layout`, and `down [E, H, I]`. Without a gate, `[E, I, H]`, and
    /// `layout` says nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] if a length disagrees with `shape`, [`Error::Value`] for a shape that no layer
    /// can have, [`Error::Unsupported`] if `T` is not a 16-bit type.
    pub fn stacked(
        cuda: &Cuda<D>,
        shape: ExpertShape,
        layout: GateUpLayout,
        gate_up: CudaBuffer<D, T>,
        down: CudaBuffer<D, T>,
    ) -> Result<Self> {
        Self::placed(cuda, shape, layout, vec![gate_up], vec![down], None)
    }

    /// Experts with a buffer each, used where they lie: `gate_up [2I, H]` with the rows of gate and
    /// up in the order of `layout`, and `down [H, I]`, for each expert. Without a gate, `[I, H]`, and
    /// `layout` says nothing.
    ///
    /// # Errors
    /// As [`CudaExperts::stacked`], and [`Error::Shape`] for another number of experts.
    pub fn table(
        cuda: &Cuda<D>,
        shape: ExpertShape,
        layout: GateUpLayout,
        experts: Vec<(CudaBuffer<D, T>, CudaBuffer<D, T>)>,
        stream: &CudaStream<D>,
    ) -> Result<Self> {
        if experts.len() != shape.num_experts {
            return Err(Error::shape("expert table", [shape.num_experts], [experts.len()]));
        }
        let (gate_up, down) = experts.into_iter().unzip();
        Self::placed(cuda, shape, layout, gate_up, down, Some(stream))
    }

    /// The same experts with biases, used where they lie: of the first product `[E, 2I]` with all of the
    /// gate's first, or `[E, I]` without a gate, and of the second `[E, H]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a length disagrees with the shape, [`Error::Value`] for an address that is no
    /// multiple of 16 or a buffer of another backend.
    pub fn with_biases(
        self,
        cuda: &Cuda<D>,
        gate_up: CudaBuffer<D, f32>,
        down: CudaBuffer<D, f32>,
    ) -> Result<Self> {
        let shape = self.shape;
        cuda.check_places([self.place(), gate_up.place("gate_up bias"), down.place("down bias")])?;
        for (operand, buffer, columns) in [
            ("gate_up bias", &gate_up, shape.gate_up_columns()),
            ("down bias", &down, shape.hidden_size),
        ] {
            let expected = checked_product(operand, &[shape.num_experts, columns])?;
            if buffer.len() != expected {
                return Err(Error::shape(operand, [expected], [buffer.len()]));
            }
            if !buffer.address().is_multiple_of(ROW_ALIGNMENT as u64) {
                let given = format!("device address {:#x}", buffer.address());
                return Err(Error::value(operand, given, "a multiple of 16"));
            }
        }
        Ok(Self { biases: Some(CudaBiases { gate_up, down }), ..self })
    }

    /// Copies experts from the host, a matrix at a time.
    pub(super) fn upload(
        cuda: &Cuda<D>,
        experts: &DenseExperts<T>,
        stream: &CudaStream<D>,
    ) -> Result<Self> {
        float16::<T>("experts")?;
        let shape = crate::weights::ExpertWeights::shape(experts);
        let ExpertShape { num_experts, hidden_size, intermediate_size, gated } = shape;
        let matrix = checked_product("expert", &[hidden_size, intermediate_size])?;
        let room = |what, matrices| {
            let len = checked_product(what, &[num_experts, matrices, matrix])?;
            CudaBuffer::uninitialised(cuda, what, len)
        };
        let first: &[_] =
            if gated { &[ExpertMatrix::Gate, ExpertMatrix::Up] } else { &[ExpertMatrix::Up] };
        let (gate_up, down) = (room("gate_up", first.len())?, room("down", 1)?);
        for expert in 0..num_experts {
            for (&which, place) in first.iter().zip(expert * first.len()..) {
                gate_up.write(place * matrix, &experts.read(expert, which)?, stream)?;
            }
            down.write(expert * matrix, &experts.read(expert, ExpertMatrix::Down)?, stream)?;
        }
        let experts_without = Self::stacked(cuda, shape, GateUpLayout::GateFirst, gate_up, down)?;
        experts_without.with_uploaded(cuda, experts.biases(), stream)
    }

    /// Repacks experts and copies them from the host, a matrix at a time.
    pub(super) fn upload_quantised(
        cuda: &Cuda<D>,
        experts: &QuantisedExperts<T>,
        stream: &CudaStream<D>,
    ) -> Result<Self> {
        let shape = crate::weights::ExpertWeights::shape(experts);
        let projection = |which| QuantisedProjection::upload(cuda, which, experts, stream);
        let gate_up = Weights::Quantised(projection(Projection::GateUp)?);
        let down = Weights::Quantised(projection(Projection::Down)?);
        Self { shape, gate_up, down, biases: None }.with_uploaded(cuda, experts.biases(), stream)
    }

    fn with_uploaded(
        self,
        cuda: &Cuda<D>,
        biases: Option<&ExpertBiases>,
        stream: &CudaStream<D>,
    ) -> Result<Self> {
        let Some(biases) = biases else { return Ok(self) };
        let gate_up = cuda.buffer_from("gate_up bias", &biases.gate_up, stream)?;
        let down = cuda.buffer_from("down bias", &biases.down, stream)?;
        self.with_biases(cuda, gate_up, down)
    }

    /// `stream` is given where each expert has a buffer of its own.
    fn placed(
        cuda: &Cuda<D>,
        shape: ExpertShape,
        layout: GateUpLayout,
        gate_up: Vec<CudaBuffer<D, T>>,
        down: Vec<CudaBuffer<D, T>>,
        stream: Option<&CudaStream<D>>,
    ) -> Result<Self> {
        float16::<T>("experts")?;
        let ExpertShape { num_experts, hidden_size, intermediate_size, .. } = shape;
        check_sizes(num_experts, hidden_size, intermediate_size)?;
        let (wide, tall) = (hidden_size as u64, intermediate_size as u64);
        let matrix = wide * tall;
        let (row_stride, gate_offset, up_offset) = match layout {
            _ if !shape.gated => (wide, 0, 0),
            GateUpLayout::GateFirst => (wide, 0, matrix),
            GateUpLayout::UpFirst => (wide, matrix, 0),
            GateUpLayout::Interleaved => (2 * wide, 0, wide),
        };
        let expert_stride = if shape.gated { 2 * matrix } else { matrix };
        let gate_up = Matrices::new(
            cuda,
            Projection::GateUp,
            shape,
            ExpertMatrices { base: 0, table: 0, expert_stride, row_stride, gate_offset, up_offset },
            gate_up,
            stream,
        )?;
        let down = Matrices::new(
            cuda,
            Projection::Down,
            shape,
            ExpertMatrices {
                base: 0,
                table: 0,
                expert_stride: matrix,
                row_stride: tall,
                gate_offset: 0,
                up_offset: 0,
            },
            down,
            stream,
        )?;
        let (gate_up, down) = (Weights::Dense(gate_up), Weights::Dense(down));
        Ok(Self { shape, gate_up, down, biases: None })
    }
}

impl<D: Driver + 'static, T: Float> Matrices<D, T> {
    fn new(
        cuda: &Cuda<D>,
        projection: Projection,
        shape: ExpertShape,
        mut place: ExpertMatrices,
        buffers: Vec<CudaBuffer<D, T>>,
        stream: Option<&CudaStream<D>>,
    ) -> Result<Self> {
        let (what, matrices) = match projection {
            Projection::GateUp => ("gate_up", 1 + usize::from(shape.gated)),
            Projection::Down => ("down", 1),
        };
        let ExpertShape { num_experts, hidden_size, intermediate_size, .. } = shape;
        let of_each = if stream.is_some() { 1 } else { num_experts };
        let expected = checked_product(what, &[of_each, matrices, hidden_size, intermediate_size])?;
        cuda.check_places(buffers.iter().map(|buffer| buffer.place(what)))?;
        for (expert, buffer) in buffers.iter().enumerate() {
            if buffer.len() != expected {
                let operand = match stream {
                    Some(_) => format!("{what} of expert {expert}"),
                    None => what.to_owned(),
                };
                return Err(Error::shape(operand, [expected], [buffer.len()]));
            }
        }
        let table = match stream {
            None => {
                place.base = buffers.first().map_or(0, CudaBuffer::address);
                None
            }
            Some(stream) => {
                let halves = buffers
                    .iter()
                    .flat_map(|buffer| [buffer.address() as u32, (buffer.address() >> 32) as u32])
                    .collect::<Vec<_>>();
                let table = cuda.buffer_from("expert table", &halves, stream)?;
                place.table = table.address();
                Some(table)
            }
        };
        let addresses =
            buffers.iter().map(|buffer| DevicePtr(buffer.address())).collect::<Vec<_>>();
        let maps = TensorMaps::encode::<T>(cuda, projection, shape, &place, &addresses, stream)?;
        Ok(Self { place, maps, buffers, _table: table })
    }
}
