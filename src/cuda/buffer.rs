//! Device memory and streams: owned, or borrowed from the caller.

use std::fmt;
use std::marker::PhantomData;

use crate::element::{DType, Element};
use crate::error::{Error, Result, checked_product};
use crate::memory::{Buffer, Memory, ROW_ALIGNMENT};

use super::Cuda;
use super::driver::{DevicePtr, Driver, DriverError, Stream};

/// A flat array in device memory.
pub struct CudaBuffer<D: Driver, T> {
    cuda: Cuda<D>,
    ptr: DevicePtr,
    len: usize,
    owned: bool,
    element: PhantomData<T>,
}

impl<D: Driver, T: Element> fmt::Debug for CudaBuffer<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaBuffer<{}>[{}] at {:#x}", T::DTYPE, self.len, self.ptr.0)
    }
}

impl<D: Driver, T: Element> Buffer<T> for CudaBuffer<D, T> {
    fn len(&self) -> usize {
        self.len
    }
}

impl<D: Driver, T> Drop for CudaBuffer<D, T> {
    fn drop(&mut self) {
        if self.owned {
            // A lost context refuses; the memory is gone with it.
            let _ = self.cuda.driver().free(self.ptr);
        }
    }
}

impl<D: Driver, T: Element> CudaBuffer<D, T> {
    /// Memory of the caller's: `len` elements at device address `address`. It is not freed.
    ///
    /// # Errors
    /// [`Error::Value`] for a null address (with elements), or one that is not a multiple of an
    /// element's size; of 16 for bf16 and f16, whose rows are read 16 bytes at a time.
    ///
    /// # Safety
    /// The memory belongs to `cuda`'s device, holds `len` elements, and outlives the buffer and all work
    /// that was submitted with it. Nothing else writes to it while such work runs, nor reads what that
    /// work writes, unless ordered by the stream.
    pub unsafe fn from_raw(cuda: &Cuda<D>, address: u64, len: usize) -> Result<Self> {
        let alignment = match T::DTYPE {
            DType::Bf16 | DType::F16 => ROW_ALIGNMENT as u64,
            other => other.size() as u64,
        };
        if (address == 0 && len > 0) || !address.is_multiple_of(alignment) {
            let expected = format!("not null, a multiple of {alignment}");
            return Err(Error::value("device address", format!("{address:#x}"), expected));
        }
        checked_product("device buffer", &[len, size_of::<T>()])?;
        let (cuda, ptr) = (cuda.clone(), DevicePtr(address));
        Ok(Self { cuda, ptr, len, owned: false, element: PhantomData })
    }

    /// Which backend the buffer belongs to, for [`Cuda::check_places`].
    pub(super) fn place(&self, operand: &'static str) -> Place<'_, D> {
        Place { operand, cuda: &self.cuda }
    }

    /// The device address of the first element.
    pub fn address(&self) -> u64 {
        self.ptr.0
    }

    /// The device address of element `index`, which may be one past the last.
    pub(super) fn at(&self, index: usize) -> u64 {
        debug_assert!(index <= self.len);
        self.ptr.0 + (index * size_of::<T>()) as u64
    }

    /// `len` elements of undefined contents.
    pub(super) fn uninitialised(cuda: &Cuda<D>, what: &str, len: usize) -> Result<Self> {
        let bytes = checked_product(what, &[len, size_of::<T>()])?;
        // No allocation is empty.
        let ptr = cuda.driver().alloc(bytes.max(16)).map_err(|error| match error {
            DriverError::OutOfMemory { bytes } => {
                Error::OutOfMemory { what: what.to_owned(), bytes }
            }
            other => other.into(),
        })?;
        Ok(Self { cuda: cuda.clone(), ptr, len, owned: true, element: PhantomData })
    }

    /// Copies `from` to the elements from `start` on.
    pub(super) fn write(&self, start: usize, from: &[T], stream: &CudaStream<D>) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let to = DevicePtr(self.at(start));
        Ok(self.cuda.driver().copy_to_device(to, bytes_of(from), stream.raw())?)
    }
}

/// An operand, and the backend that it belongs to.
pub(super) struct Place<'a, D: Driver> {
    pub(super) operand: &'static str,
    pub(super) cuda: &'a Cuda<D>,
}

/// The elements as bytes.
fn bytes_of<T: Element>(elements: &[T]) -> &[u8] {
    // SAFETY: `Element` is sealed; its types are numbers, without padding or invalid bytes.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

fn bytes_of_mut<T: Element>(elements: &mut [T]) -> &mut [u8] {
    // SAFETY: as `bytes_of`, and every bit pattern is an element.
    unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements)) }
}

/// A stream: of the backend's making, or the caller's.
pub struct CudaStream<D: Driver> {
    cuda: Cuda<D>,
    handle: Stream,
    owned: bool,
}

impl<D: Driver> fmt::Debug for CudaStream<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaStream({:#x})", self.handle.0)
    }
}

impl<D: Driver> Drop for CudaStream<D> {
    fn drop(&mut self) {
        if self.owned {
            let _ = self.cuda.driver().destroy_stream(self.handle);
        }
    }
}

impl<D: Driver> CudaStream<D> {
    pub(super) fn new(cuda: &Cuda<D>) -> Result<Self> {
        let handle = cuda.driver().create_stream()?;
        Ok(Self { cuda: cuda.clone(), handle, owned: true })
    }

    /// A stream of the caller's, by its handle (`CUstream`). It is not destroyed.
    ///
    /// # Safety
    /// The stream belongs to `cuda`'s device and outlives this object.
    pub unsafe fn from_raw(cuda: &Cuda<D>, handle: u64) -> Self {
        Self { cuda: cuda.clone(), handle: Stream(handle), owned: false }
    }

    /// Which backend the stream belongs to, for [`Cuda::check_places`].
    pub(super) fn place(&self) -> Place<'_, D> {
        Place { operand: "stream", cuda: &self.cuda }
    }

    /// The driver's handle.
    pub fn raw(&self) -> Stream {
        self.handle
    }

    /// Waits for all work in the stream.
    ///
    /// # Errors
    /// [`Error::Device`], also for faults of kernels that were launched before.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.cuda.driver().synchronize(self.handle)?)
    }
}

impl<D: Driver + 'static> Memory for Cuda<D> {
    type Buffer<T: Element> = CudaBuffer<D, T>;
    type Stream = CudaStream<D>;

    fn plan_scratch_len(num_experts: usize, max_assignments: usize) -> usize {
        super::plan::scratch_len(num_experts, max_assignments)
    }

    fn allocate<T: Element>(&self, what: &str, len: usize) -> Result<CudaBuffer<D, T>> {
        let buffer = CudaBuffer::uninitialised(self, what, len)?;
        let bytes = len * size_of::<T>();
        if bytes > 0 {
            self.driver().fill(buffer.ptr, 0, bytes, self.setup())?;
            self.driver().synchronize(self.setup())?;
        }
        Ok(buffer)
    }

    fn upload<T: Element>(
        &self,
        from: &[T],
        to: &mut CudaBuffer<D, T>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        if from.len() > to.len {
            return Err(Error::shape("upload destination", [from.len()], [to.len]));
        }
        to.write(0, from, stream)
    }

    fn download<T: Element>(
        &self,
        from: &CudaBuffer<D, T>,
        to: &mut [T],
        stream: &CudaStream<D>,
    ) -> Result<()> {
        if to.len() > from.len {
            return Err(Error::shape("download source", [to.len()], [from.len]));
        }
        if to.is_empty() {
            return Ok(());
        }
        Ok(self.driver().copy_to_host(bytes_of_mut(to), from.ptr, stream.raw())?)
    }
}
