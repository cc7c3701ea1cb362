//! Capture: work recorded from a stream, and from those that join it by waiting for its events.

use crate::fault::Fault;
use crate::queue::{EventState, Op, State, StreamState};
use moe_kernels::cuda::driver::{DriverError, Event, Result, Stream};
use std::collections::VecDeque;
use std::sync::Arc;

/// A recording in progress, or ended. Branch 0 is the stream in which it began; recordings and waits in it
/// name events by their place in `events`.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    branches: Vec<Vec<Op>>,
    /// The branch in which each event was recorded.
    events: Vec<usize>,
}
impl Recording {
    /// How many operations of each branch the end of branch 0 waits for.
    fn joined(&self) -> Vec<usize> {
        let mut joined = vec![0; self.branches.len()];
        let mut open = vec![(0, self.branches[0].len())];
        while let Some((branch, end)) = open.pop() {
            let begin = joined[branch];
            joined[branch] = begin.max(end);
            for op in self.branches[branch].get(begin..end).unwrap_or_default() {
                let Op::Wait { event, .. } = *op else { continue };
                let source = self.events[event as usize];
                let recorded = |op: &Op| matches!(op, Op::Record { event: e, .. } if *e == event);
                let at = self.branches[source].iter().position(recorded);
                open.push((source, at.map_or(0, |at| at + 1)));
            }
        }
        joined
    }
    /// Does the end of branch 0 wait for the work of all others?
    fn is_joined(&self) -> bool {
        self.branches
            .iter()
            .zip(self.joined())
            .all(|(ops, end)| ops[end..].iter().all(|op| matches!(op, Op::Record { .. })))
    }
}

/// A stream's place in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) recording: u64,
    pub(crate) branch: usize,
}

fn refused<T>(what: &'static str, why: &str) -> Result<T> {
    Err(DriverError::InvalidValue { what, why: why.into() })
}

impl State {
    pub(crate) fn begin_capture(&mut self, stream: Stream) -> Result<()> {
        let recording = self.handle();
        let q = self.stream(stream)?;
        if q.capture.is_some() {
            return Err(DriverError::Capturing("begin_capture"));
        }
        q.capture = Some(Place { recording, branch: 0 });
        let begun = Recording { branches: vec![Vec::new()], events: Vec::new() };
        self.recordings.insert(recording, begun);
        Ok(())
    }
    /// Appends to the stream's queue, or to the recording that it takes part in.
    pub(crate) fn submit(&mut self, stream: Stream, op: Op) -> Result<()> {
        let q = self.stream(stream)?;
        match q.capture {
            None => q.queue.push_back(op),
            Some(at) => self.recording(at.recording).branches[at.branch].push(op),
        }
        Ok(())
    }
    fn recording(&mut self, handle: u64) -> &mut Recording {
        self.recordings.get_mut(&handle).expect("a stream's place is in a recording in progress")
    }
    pub(crate) fn record_event(&mut self, event: Event, stream: Stream) -> Result<()> {
        let place = self.stream(stream)?.capture;
        let e = self.event(event)?;
        let Some(at) = place else {
            e.version += 1;
            e.stream = stream.0;
            e.captured = None;
            let version = e.version;
            return self.submit(stream, Op::Record { event: event.0, version });
        };
        let recording = self.recording(at.recording);
        let local = recording.events.len() as u64;
        recording.events.push(at.branch);
        self.event(event)?.captured = Some((at.recording, local));
        self.submit(stream, Op::Record { event: local, version: 1 })
    }
    pub(crate) fn wait_event(&mut self, stream: Stream, event: Event) -> Result<()> {
        let place = self.stream(stream)?.capture;
        let e = self.event(event)?;
        let version = e.version;
        let Some((recording, local)) = e.captured else {
            if place.is_some() {
                return refused("event", "it was not recorded in the capture that waits for it");
            }
            return self.submit(stream, Op::Wait { event: event.0, version });
        };
        if !self.recordings.contains_key(&recording) {
            return refused("event", "it was recorded in a capture that has ended");
        }
        match place {
            Some(at) if at.recording != recording => {
                return refused("event", "it was recorded in another capture");
            }
            Some(_) => {}
            None => {
                let branches = &mut self.recording(recording).branches;
                branches.push(Vec::new());
                let branch = branches.len() - 1;
                self.stream(stream)?.capture = Some(Place { recording, branch });
            }
        }
        self.submit(stream, Op::Wait { event: local, version: 1 })
    }
    pub(crate) fn end_capture(&mut self, stream: Stream) -> Result<Recording> {
        let place = match self.stream(stream)?.capture {
            None => return refused("stream", "it is not capturing"),
            Some(place) if place.branch != 0 => {
                return refused("stream", "its capture began in another stream");
            }
            Some(place) => place,
        };
        let recording = self.recordings.remove(&place.recording).expect("it was in progress");
        for s in self.streams.values_mut() {
            s.capture.take_if(|p| p.recording == place.recording);
        }
        if !recording.is_joined() {
            return refused("stream", "work of a stream that joined its capture is not waited for");
        }
        Ok(recording)
    }

    /// Runs a recording as a whole: each branch in a stream of its own, as late as the waits allow.
    pub(crate) fn run_recording(
        &mut self,
        recording: &Arc<Recording>,
    ) -> std::result::Result<(), Fault> {
        let streams: Vec<u64> = recording.branches.iter().map(|_| self.handle()).collect();
        let events: Vec<u64> = recording.events.iter().map(|_| self.handle()).collect();
        for (&event, &branch) in events.iter().zip(&recording.events) {
            let stream = streams[branch];
            self.events.insert(event, EventState { version: 1, stream, ..EventState::default() });
        }
        for (&stream, ops) in streams.iter().zip(&recording.branches) {
            let renamed = |op: &Op| match op.clone() {
                Op::Record { event, version } => {
                    Op::Record { event: events[event as usize], version }
                }
                Op::Wait { event, version } => Op::Wait { event: events[event as usize], version },
                other => other,
            };
            let queue: VecDeque<Op> = ops.iter().map(renamed).collect();
            self.streams.insert(stream, StreamState { queue, capture: None });
        }
        let result = self.flush(streams[0], None);
        self.streams.retain(|s, _| !streams.contains(s));
        self.events.retain(|e, _| !events.contains(e));
        result
    }
}
