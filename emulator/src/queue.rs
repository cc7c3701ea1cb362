//! Streams: queues whose work runs only when something waits for it.
//!
//! Running as late as possible is the adversarial choice: work of another stream that nothing orders
//! has not happened yet when it is needed.

use crate::capture::{Place, Recording};
use crate::fault::Fault;
use crate::ffi::{Device, LaunchOp};
use crate::options::Stats;
use moe_kernels::cuda::driver::{DriverError, Event, Result as DriverResult, Stream};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// One piece of a stream's work.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Launch(Box<LaunchOp>),
    Upload { dst: u64, data: Vec<u8> },
    Copy { dst: u64, src: u64, bytes: usize },
    Fill { dst: u64, value: u8, bytes: usize },
    Record { event: u64, version: u64 },
    Wait { event: u64, version: u64 },
    Graph(Arc<Recording>),
}

#[derive(Default)]
pub(crate) struct StreamState {
    pub(crate) queue: VecDeque<Op>,
    pub(crate) capture: Option<Place>,
}

#[derive(Default)]
pub(crate) struct EventState {
    /// How often it was recorded, and in which stream last.
    pub(crate) version: u64,
    pub(crate) stream: u64,
    /// The recording that has happened, and when.
    pub(crate) done: u64,
    pub(crate) at: Option<std::time::Instant>,
    /// The capture in which it was recorded last, and its number there.
    pub(crate) captured: Option<(u64, u64)>,
}

/// Everything behind the driver's lock.
pub(crate) struct State {
    pub(crate) device: Device,
    pub(crate) streams: HashMap<u64, StreamState>,
    pub(crate) events: HashMap<u64, EventState>,
    pub(crate) recordings: HashMap<u64, Recording>,
    pub(crate) graphs: HashMap<u64, Arc<Recording>>,
    pub(crate) next_handle: u64,
    pub(crate) poisoned: Option<Fault>,
    pub(crate) stats: Stats,
    pub(crate) lint: String,
    pub(crate) bytes_in_use: u64,
    pub(crate) sizes: HashMap<u64, u64>,
}

impl State {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            streams: HashMap::new(),
            events: HashMap::new(),
            recordings: HashMap::new(),
            graphs: HashMap::new(),
            next_handle: 1,
            poisoned: None,
            stats: Stats::default(),
            lint: String::new(),
            bytes_in_use: 0,
            sizes: HashMap::new(),
        }
    }
    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    pub(crate) fn stream(&mut self, stream: Stream) -> DriverResult<&mut StreamState> {
        let unknown = DriverError::UnknownHandle { kind: "stream", handle: stream.0 };
        self.streams.get_mut(&stream.0).ok_or(unknown)
    }
    pub(crate) fn event(&mut self, event: Event) -> DriverResult<&mut EventState> {
        let unknown = DriverError::UnknownHandle { kind: "event", handle: event.0 };
        self.events.get_mut(&event.0).ok_or(unknown)
    }

    /// Runs a stream's work up to its end, or up to a recording.
    pub(crate) fn flush(&mut self, stream: u64, until: Option<(u64, u64)>) -> Result<(), Fault> {
        loop {
            let Some(op) = self.streams.get_mut(&stream).and_then(|s| s.queue.pop_front()) else {
                return Ok(());
            };
            match op {
                Op::Launch(first) => self.run_chain(stream, *first)?,
                Op::Graph(recording) => self.run_recording(&recording)?,
                Op::Upload { dst, data } => self.device.write(dst, &data),
                Op::Copy { dst, src, bytes } => self.device.copy(dst, src, bytes),
                Op::Fill { dst, value, bytes } => self.device.fill(dst, value, bytes),
                Op::Wait { event, version } => {
                    if let Some(e) = self.events.get(&event)
                        && e.done < version
                    {
                        let source = e.stream;
                        self.flush(source, Some((event, version)))?;
                    }
                }
                Op::Record { event, version } => {
                    if let Some(e) = self.events.get_mut(&event) {
                        e.done = e.done.max(version);
                        e.at = Some(std::time::Instant::now());
                    }
                    if until == Some((event, version)) {
                        return Ok(());
                    }
                }
            }
        }
    }
    pub(crate) fn flush_all(&mut self) -> Result<(), Fault> {
        let mut streams: Vec<u64> = self.streams.keys().copied().collect();
        streams.sort_unstable();
        streams.into_iter().try_for_each(|s| self.flush(s, None))
    }

    /// A kernel and those behind it that may overlap it run as one.
    fn run_chain(&mut self, stream: u64, first: LaunchOp) -> Result<(), Fault> {
        let mut chain = vec![first];
        // The first kernel of a chain has nothing to overlap.
        chain[0].config.programmatic = false;
        let queue = &mut self.streams.get_mut(&stream).expect("its work was just taken").queue;
        while matches!(queue.front(), Some(Op::Launch(l)) if l.config.programmatic && l.options == chain[0].options && chain.len() < 64)
        {
            if let Some(Op::Launch(l)) = queue.pop_front() {
                chain.push(*l);
            }
        }
        match self.device.run(&chain) {
            Ok((stats, lint)) => {
                self.stats = stats;
                self.lint += &lint;
                Ok(())
            }
            Err(fault) => {
                self.poisoned = Some(fault.clone());
                Err(fault)
            }
        }
    }
}
