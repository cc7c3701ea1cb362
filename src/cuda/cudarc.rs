//! Buffers and streams of cudarc, used where they are (feature `cudarc`).
//!
//! A [`Cuda`] opened on the same device uses its primary context, which is also cudarc's.

use std::sync::Arc;

use cudarc::driver::{CudaStream as TheirStream, DevicePtr, DevicePtrMut};

use crate::element::Element;
use crate::error::{Error, Result};

use super::nvidia::NvidiaDriver;
use super::{Cuda, CudaBuffer, CudaStream};

impl<T: Element> CudaBuffer<NvidiaDriver, T> {
    /// A slice or view of cudarc's, to be read. It is not freed.
    ///
    /// `stream` waits for the slice's last writes, where cudarc keeps track of them.
    ///
    /// # Errors
    /// [`Error::Value`] if elements of the slice have another size than `T`, and as
    /// [`CudaBuffer::from_raw`].
    ///
    /// # Safety
    /// As [`CudaBuffer::from_raw`]. Work with the buffer is submitted to `stream`, or ordered after it.
    /// cudarc notes at this call that `stream` uses the slice, and learns of no later work: before the
    /// slice is dropped or used in another stream, wait for that work.
    pub unsafe fn from_cudarc<U>(
        cuda: &Cuda<NvidiaDriver>,
        slice: &impl DevicePtr<U>,
        stream: &Arc<TheirStream>,
    ) -> Result<Self> {
        check_size::<T, U>()?;
        let (address, _read) = slice.device_ptr(stream);
        // SAFETY: the caller's promise.
        unsafe { Self::from_raw(cuda, address, slice.len()) }
    }

    /// As [`CudaBuffer::from_cudarc`], to be written: `stream` waits for the slice's last reads too.
    ///
    /// # Errors
    /// As [`CudaBuffer::from_cudarc`].
    ///
    /// # Safety
    /// As [`CudaBuffer::from_cudarc`].
    pub unsafe fn from_cudarc_mut<U>(
        cuda: &Cuda<NvidiaDriver>,
        slice: &mut impl DevicePtrMut<U>,
        stream: &Arc<TheirStream>,
    ) -> Result<Self> {
        check_size::<T, U>()?;
        let len = slice.len();
        let (address, _write) = slice.device_ptr_mut(stream);
        // SAFETY: the caller's promise.
        unsafe { Self::from_raw(cuda, address, len) }
    }
}

impl CudaStream<NvidiaDriver> {
    /// A stream of cudarc's. It is not destroyed.
    ///
    /// # Safety
    /// As [`CudaStream::from_raw`].
    pub unsafe fn from_cudarc(cuda: &Cuda<NvidiaDriver>, stream: &Arc<TheirStream>) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::from_raw(cuda, stream.cu_stream() as u64) }
    }
}

/// cudarc's `half` feature may be off: any type of the same size will do for a 16-bit float.
fn check_size<T: Element, U>() -> Result<()> {
    if size_of::<T>() == size_of::<U>() {
        return Ok(());
    }
    let given = format!("elements of {} bytes", size_of::<U>());
    Err(Error::value("cudarc slice", given, format!("{}, of {} bytes", T::DTYPE, size_of::<T>())))
}
