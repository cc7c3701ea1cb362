// The state of a running chain of kernels: threads, warps, blocks, clusters, grids.
#pragma once
#include "core/clocks.h"
#include "device/cuda_lang.h"
#include "device/kernel_registry.h"
#include "device/ptx_site.h"
#include "emulator.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emu {
constexpr uint32_t kSharedBase = 1024;       // where dynamic shared memory begins (sm_90 reserves 1 KiB)
constexpr int kRankShift = 24;               // shared::cluster addresses: (rank + 1) << 24 | offset
constexpr size_t kStackBytes = 64 << 10;

// Values that stand for "nothing sensible": a NaN in bf16, f16 and f32, recognisable in a report.
// The payload survives arithmetic and the conversions that the models perform.
enum Poison : uint16_t { kUnwritten = 0x7fda, kInFlight = 0x7fdb, kAccumulating = 0x7fdc };
void poison(void* p, size_t bytes, Poison);

struct Rng {
  uint64_t s = 1;
  uint64_t next() {
    s += 0x9e3779b97f4a7c15ull;
    uint64_t z = s;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t n) { return (uint32_t)(((next() >> 32) * n) >> 32); }
};

struct Block;
struct Cluster;
struct Grid;
struct Warp;
struct AsyncOp;

enum class Wait : uint8_t { None, Collective, Mbarrier, NamedBarrier, Bulk, Registers, Yield, ClusterBarrier, GridDependency };

struct CpAsync { uint32_t dst; const void* src; int bytes, src_bytes; uint32_t pc; int group; };

struct Fiber : ThreadIndex {
  int t = 0;                                  // thread of the block
  int lane = 0;
  uint32_t who = 0;                           // entry in the cluster's clocks
  Warp* warp = nullptr;
  Block* home = nullptr;
  void* sp = nullptr;
  char* stack = nullptr;
  bool done = false, queued = false;
  Wait wait = Wait::None;
  uint64_t wait_a = 0, wait_b = 0;
  const char* wait_name = "";
  void* pc = nullptr;                         // kernel code that called into the emulator
  std::vector<CpAsync> cp_async;
  int cp_async_group = 0;
  int bulk_group = 0, bulk_waited = 0;
  std::vector<std::pair<int, Clocks>> bulk_clocks, bulk_read_clocks;
  uint64_t cluster_phase = 0;                 // cluster barrier phase I arrived in
  bool cluster_arrived = false;
  Clocks clocks;
  std::map<uintptr_t, int> tensor_maps_acquired;   // by fence.proxy.tensormap: which version of each
  uintptr_t stored = 0;                       // last plain global store, whose value is looked at later
  uint32_t stored_bytes = 0, stored_pc = 0;
};

struct Collective {                           // a warp-wide operation waiting for its lanes
  uint32_t mask, arrived;
  const void* key;
  const char* name;
  void* arg[32];
};

struct WgmmaState;                            // models/wgmma.cpp
struct WgmmaDeleter { void operator()(WgmmaState*) const; };

struct Warp {
  Block* block = nullptr;
  int index = 0, lanes = 0, regs = 0;
  uint32_t full = 0;
  std::vector<Collective> collectives;
  std::unique_ptr<WgmmaState, WgmmaDeleter> wgmma;
  Warp() = default;
  Warp(Warp&&) noexcept = default;
};

struct Mbarrier {
  uint32_t addr;
  int count, pending;
  int64_t tx;
  uint64_t phase;
  uint32_t init_who, init_clock;
  bool async_visible;                         // its initialisation has been fenced
  Clocks accumulating, completed;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
  int votes = 0, last_votes = 0;
  Clocks accumulating, completed[2];
};

struct Block {
  Cluster* cluster = nullptr;
  uint32_t rank = 0;                          // in the cluster
  uint3 index{};
  int n_threads = 0, live = 0;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  uint8_t* arena = nullptr;                   // arena[0, kSharedBase) is reserved
  uint32_t shared_bytes = 0;
  std::map<uint32_t, Mbarrier> mbarriers;
  uint32_t mbarrier_low = ~0u, mbarrier_high = 0;   // all of them lie between
  NamedBarrier barriers[16];
  int register_pool = 0;
  bool triggered = false;
  int triggers = 0;                           // threads that issued launch_dependents or exited
  struct Granule* shadow = nullptr;
  std::vector<uint16_t> written;              // bytes of shared memory ever written, 16 per granule
};

struct ClusterBarrier { int expected = 0, arrived = 0; uint64_t phase = 0; Clocks accumulating, completed[2]; };

struct Cluster {                              // blocks that run together, and one clock domain
  Grid* grid = nullptr;
  uint32_t seq = 0;
  std::vector<Block*> blocks;
  std::vector<std::unique_ptr<AsyncOp>> async;
  ClusterBarrier barrier;
  int live_blocks = 0, next_agent = 0;
  uint32_t n_threads = 0;
  std::vector<uint32_t> agent_clock;
};

struct Grid {                                 // one kernel of the chain
  const KernelEntry* kernel;
  emu_launch launch;
  int index;
  uint32_t first_seq, clusters, started = 0, finished = 0, triggered = 0;
  std::vector<uint32_t> order;                // in which clusters start
  uint64_t known = 0;                         // grids whose completion this one's completion implies
  int entry_regs = 0;
  bool done() const { return finished == clusters; }
};

struct Device;
struct Run {                                  // one emu_run
  Device* device;
  emu_options options;
  emu_stats stats{};
  Rng rng;
  int policy = 0;
  uint32_t first_seq = 0, next_seq = 0;
  std::vector<Grid> grids;
  std::vector<Cluster*> live;
  std::deque<Fiber*> ready;
  std::vector<uint32_t> warp_priority;
  std::unordered_map<uintptr_t, Release> releases;        // device-scope synchronisation variables
  std::unordered_map<uintptr_t, int> tensor_map_versions; // maps in device memory that this chain modified
  std::unordered_map<const void*, std::shared_ptr<const void>> edited_sites;
  void* scheduler_sp = nullptr;
  uint64_t spin = 0;
  int fault_kind = EMU_OK;
  std::string report;
  bool check() const { return options.check != 0; }
  bool lint() const { return options.lint != 0; }
  bool adversarial() const { return options.seed != 0; }
};
extern thread_local Run* run;
inline Fiber* self() { return static_cast<Fiber*>(current); }
inline Fiber* lane_of(Warp* w, int lane) { return w->block->fibers[w->index * 32 + lane]; }

// ---- faults (core/fault.cpp)
[[noreturn]] void fail(emu_fault_kind, const char* fmt, ...) __attribute__((format(printf, 2, 3)));
void record_fault(emu_fault_kind, const std::string&);
std::string source_of(void* pc);              // "function at file:line, inlined into ..."
std::string source_of(uint32_t compact_pc);
uint32_t compact_pc(void* pc);
inline uint32_t here() { return compact_pc(self()->pc); }
#define EMU_ENTRY() (::emu::self()->pc = __builtin_return_address(0))

// ---- scheduling (core/fiber.cpp, core/scheduler.cpp)
char* take_stack();
void give_stack(char*);
void* fresh_context(char* stack, void (*entry)());
void switch_context(void** save, void* to);
void block_on(Wait, uint64_t a, uint64_t b, const char* name);
void wake(Fiber*);
template <class P> void wake_if(Block* b, P predicate) {
  for (Fiber* f : b->fibers) if (!f->done && f->wait != Wait::None && predicate(f)) wake(f);
}
void grid_event();                            // a block triggered or ended: dependents may start
std::string deadlock_report();

// ---- collectives (core/collectives.cpp)
// What the last lane to arrive does for all.  It refers to the caller's lambda: every lane makes one, and copying it
// into a std::function would allocate.
class Act {
 public:
  template <class F> Act(const F& f) : f_(&f), call_([](const void* p, Collective& c) { (*static_cast<const F*>(p))(c); }) {}
  void operator()(Collective& c) const { call_(f_, c); }

 private:
  const void* f_;
  void (*call_)(const void*, Collective&);
};
void collective(uint32_t mask, const void* key, const char* name, void* arg, Act);
void named_barrier(int id, int threads, bool wait, const void* key, const char* name);
void cluster_arrive(bool release);
void cluster_wait(bool acquire);

// ---- shared memory
inline std::string shared_name(uint32_t addr) { return "smem+" + std::to_string((int64_t)addr - kSharedBase); }
uint8_t* shared_bytes_at(Block*, uint32_t addr, uint32_t n, const char* what);
struct SharedRef { Block* block; uint32_t addr; };
SharedRef resolve_cluster(uint32_t addr, const char* what);   // a shared::cluster address
}  // namespace emu
