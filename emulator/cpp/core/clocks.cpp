#include "core/clocks.h"

namespace emu {
// Clocks are joined more often than anything else is done, and SSE2 has no maximum of unsigned integers.
EMU_WIDE_VECTORS
static void maximum(uint32_t* __restrict x, const uint32_t* __restrict y, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = x[i] > y[i] ? x[i] : y[i];
}
void join_into(ClockVec& a, const ClockVec& b) {
  if (a.size() < b.size()) a.resize(b.size(), 0);
  maximum(a.data(), b.data(), b.size());
}

static Snapshot join_snapshots(const Snapshot& a, const Snapshot& b) {
  if (a == b) return a;
  auto sum = std::make_shared<ClockVec>(*a);
  join_into(*sum, *b);
  return sum;
}

ForeignPtr join_foreign(const ForeignPtr& a, const ForeignPtr& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto out = std::make_shared<Foreign>();
  out->reserve(a->size() + b->size());
  size_t i = 0, k = 0;
  while (i < a->size() || k < b->size()) {
    if (k == b->size() || (i < a->size() && (*a)[i].first < (*b)[k].first)) out->push_back((*a)[i++]);
    else if (i == a->size() || (*b)[k].first < (*a)[i].first) out->push_back((*b)[k++]);
    else { out->push_back({(*a)[i].first, join_snapshots((*a)[i].second, (*b)[k].second)}); i++; k++; }
  }
  return out;
}

ForeignPtr with_cluster(const ForeignPtr& f, uint32_t cluster, const ClockVec& seen) {
  auto one = std::make_shared<Foreign>();
  one->push_back({cluster, std::make_shared<const ClockVec>(seen)});
  return join_foreign(f, one);
}

void join_own(ClockVec& seen, const ForeignPtr& f, uint32_t cluster) {
  if (!f) return;
  for (auto& [seq, snapshot] : *f) if (seq == cluster) join_into(seen, *snapshot);
}

bool foreign_knows(const ForeignPtr& f, uint32_t cluster, uint32_t who, uint32_t when) {
  if (!f) return false;
  auto it = std::lower_bound(f->begin(), f->end(), cluster, [](const auto& e, uint32_t c) { return e.first < c; });
  return it != f->end() && it->first == cluster && who < it->second->size() && when <= (*it->second)[who];
}
}  // namespace emu
