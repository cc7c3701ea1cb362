// The ring of stages between the producers and the consumers of a block.
#pragma once
#include "common/device.cuh"
#include "ptx/mbarrier.cuh"

template <uint32_t kStages> struct RingBarriers {
  alignas(8) uint64_t full[kStages];
  alignas(8) uint64_t empty[kStages];
};

// One role's place in the ring.  Producers and consumers take the same stages in the same order, across tiles.
template <uint32_t kStages> class Ring {
 public:
  __device__ __forceinline__ explicit Ring(RingBarriers<kStages>& barriers)
      : full_(shared_address(barriers.full)), empty_(shared_address(barriers.empty)) {}

  // By one thread, before the block's first barrier.
  static __device__ __forceinline__ void init(RingBarriers<kStages>& barriers, uint32_t full_arrivals,
                                              uint32_t empty_arrivals) {
    for (uint32_t i = 0; i < kStages; i++) {
      ptx::mbarrier_init(shared_address(&barriers.full[i]), full_arrivals);
      ptx::mbarrier_init(shared_address(&barriers.empty[i]), empty_arrivals);
    }
    ptx::fence_mbarrier_init();
  }

  __device__ __forceinline__ uint32_t stage() const { return stage_; }
  __device__ __forceinline__ void advance() {
    if (++stage_ == kStages) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }

  // Past stages that another role takes.
  __device__ __forceinline__ void skip(uint32_t stages) {
    stage_ += stages % kStages;
    phase_ ^= stages / kStages % 2;
    if (stage_ >= kStages) {
      stage_ -= kStages;
      phase_ ^= 1;
    }
  }

  // Producers.  The stage may be filled; what fills it arrives at the barrier that is returned.
  __device__ __forceinline__ uint32_t wait_empty() const {
    ptx::mbarrier_wait(empty_ + 8 * stage_, phase_ ^ 1);
    return full_ + 8 * stage_;
  }
  // Consumers.
  __device__ __forceinline__ void wait_full() const { ptx::mbarrier_wait(full_ + 8 * stage_, phase_); }
  __device__ __forceinline__ void release(uint32_t stage) const { ptx::mbarrier_arrive(empty_ + 8 * stage); }

 private:
  uint32_t full_, empty_, stage_ = 0, phase_ = 0;
};
