//! The Hopper kernels: tensor maps of the weights, of packed rows and of the output.

use std::marker::PhantomData;

use crate::element::Float;
use crate::error::Result;
use crate::ops::{ExpertShape, Projection};

use super::super::abi::ExpertMatrices;
use super::super::driver::{DevicePtr, Driver};
use super::super::{Cuda, CudaStream};
use super::Launch;

/// One projection's weights as TMA reads them.
pub(in super::super) struct TensorMaps<D: Driver> {
    driver: PhantomData<D>,
}

impl<D: Driver> TensorMaps<D> {
    /// `None` where no Hopper kernel can run. `addresses` are the stack's, or each expert's;
    /// `stream` is given with the latter.
    pub(in super::super) fn encode<T: Float>(
        _cuda: &Cuda<D>,
        _projection: Projection,
        _shape: ExpertShape,
        _place: &ExpertMatrices,
        _addresses: &[DevicePtr],
        _stream: Option<&CudaStream<D>>,
    ) -> Result<Option<Self>> {
        Ok(None)
    }
}

pub(super) fn run<D: Driver, T: Float>(
    _launch: &Launch<'_, D, T>,
    _stream: &CudaStream<D>,
) -> Result<()> {
    todo!()
}
