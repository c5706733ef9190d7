// The entry points of convolutions, and their loop: tiles of output positions x conv groups x row
// blocks of the weight.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../common/checks.h"
#include "conv.h"
#include "epilogue.h"
#include "isa.h"
#include "parallel.h"

namespace bitimpl {
namespace {

// What a thread takes at a time: a multiple of the format's block, of the 32 rows that the widest binary
// kernel keeps side by side and, where y is of signs, of the rows that share a byte of it.
int64_t unit_rows_of(int32_t format, bool signs) {
  if (format == BITIMPL_BINARY) return 2 * kBinaryBlockRows;
  return format == BITIMPL_BASE3 && signs ? 2 * kBase3BlockRows : block_rows_of(format);
}
static_assert(kTwoBitBlockRows % 8 == 0 && 2 * kBase3BlockRows % 8 == 0 && kChunkRows % 16 == 0 &&
                  kChunkRows % (2 * kBase3BlockRows) == 0,
              "units and chunks end with bytes");

struct ConvCall {
  const KernelTable& kernels;
  const ConvPlan& plan;
  const ConvLayout& layout;
  const LinearTask& task;  // the whole weight
  const bitimpl_image& y;
  char* base;
  int64_t tiles;
  int64_t units;      // row units of a conv group
  int64_t unit_rows;
  int64_t together;   // units that one thread takes at least
  bool signs;         // y is of signs
};

// The first row a group's kernels compute: ternary rows share bytes, so they start at a block, which
// may begin with rows of the group before.
int64_t first_row_of(const ConvCall& call, int64_t group) {
  const int64_t row = group * call.plan.group_rows;
  return call.task.format == BITIMPL_BINARY ? row : row / call.unit_rows * call.unit_rows;
}

// The most units that any group takes.
int64_t units_of_group(const ConvPlan& plan, int32_t format, int64_t unit_rows) {
  if (plan.groups == 1 || format == BITIMPL_BINARY || plan.group_rows % unit_rows == 0) {
    return (plan.group_rows + unit_rows - 1) / unit_rows;
  }
  return (plan.group_rows + unit_rows - 2) / unit_rows + 1;
}

// One thread's work on one tile after the other.
struct Worker {
  const ConvCall& call;
  const ConvPlan& plan;
  char* scratch;
  int64_t tile = -1;
  int64_t group = -1;
  int64_t tokens = 0;
  int64_t run_count = 0;
  bool border = false;   // some window sees added positions
  int64_t step = 0;      // between the results of successive tokens in y, or -1
  int64_t result_bytes;  // of an element of y; 0: a bit

  Worker(const ConvCall& conv, char* memory)
      : call(conv), plan(conv.plan), scratch(memory), result_bytes(bytes_of_dtype(conv.y.dtype)) {
    if (!plan.depthwise) clear_tails(plan, call.layout, scratch);
  }

  Run* runs() const { return at<Run>(call.layout.runs); }
  // Channel 0 of each token in y, in elements.
  int64_t* places() const { return at<int64_t>(call.layout.places); }
  template <class Value>
  Value* at(int64_t offset) const {
    return reinterpret_cast<Value*>(scratch + offset);
  }
  char* result(int64_t element) const {
    return static_cast<char*>(call.y.data) + (call.signs ? element / 8 : element * result_bytes);
  }

  void enter_tile(int64_t index) {
    if (index == tile) return;
    tile = index;
    group = -1;
    const int64_t begin = plan.tokens / call.tiles * index + plan.tokens % call.tiles * index / call.tiles;
    const int64_t next = index + 1;
    const int64_t end = plan.tokens / call.tiles * next + plan.tokens % call.tiles * next / call.tiles;
    tokens = end - begin;
    run_count = find_runs(plan, begin, tokens, runs());
    const float* scale = reinterpret_cast<const float*>(call.base + call.layout.scale);
    border = false;
    for (int64_t i = 0; i < run_count; ++i) {
      const Run& run = runs()[i];
      border = border || !run.whole || run.inside_end - run.inside_begin != run.count;
      int64_t place = run.sample * call.y.sample_stride;
      for (int d = 0; d < 3; ++d) place += run.place[d] * call.y.spatial_stride[d];
      for (int64_t t = run.token; t < run.token + run.count; ++t) {
        places()[t] = place;
        place += call.y.spatial_stride[2];
        at<float>(call.layout.token_scale)[t] = scale[run.sample];
        at<float>(call.layout.marks)[t] = 1.0f;
      }
    }
    step = tokens > 1 ? places()[1] - places()[0] : 0;
    for (int64_t i = 1; i < tokens; ++i) {
      if (places()[i] - places()[i - 1] != step) step = -1;
    }
  }

  void enter_group(int64_t index) {
    if (index == group) return;
    group = index;
    if (plan.depthwise) return;
    gather(call.kernels, plan, call.layout, call.base, scratch, group, runs(), run_count);
  }

  Activations activations() const {
    Activations x = form_of(plan, plan.tile_tokens);
    x.scale = at<float>(call.layout.token_scale);
    if (plan.depthwise) return x;
    if (plan.bits) {
      x.signs = at<uint64_t>(call.layout.rows[0]);
      x.sign_stride = call.layout.row_stride / 8;
      return x;
    }
    x.q_stride = call.layout.row_stride;
    for (int i = 0; i < plan.planes; ++i) {
      x.q[i] = at<int8_t>(call.layout.rows[i]);
      x.sums[i] = at<int32_t>(call.layout.sums[i]);
    }
    return x;
  }

  void run_kernel(const LinearTask& task) const {
    Tile part = {};
    const int64_t block = block_rows_of(task.format);
    part.block_end = (task.rows + block - 1) / block;
    part.token_end = tokens;
    part.scratch = scratch + call.layout.kernel_scratch;
    (task.format == BITIMPL_BINARY ? call.kernels.binary : call.kernels.ternary)(task, part);
  }

  // Rows [begin, end) of the tile's results to y; row r of token i at values + i * kChunkRows + r.
  void store(int64_t begin, int64_t end, const char* values) const {
    const int64_t stride = call.y.channel_stride;
    const int64_t row_bytes = kChunkRows * result_bytes;
    for (int64_t i = 0; i < tokens;) {
      const int64_t first = places()[i];
      int64_t run = 1;
      while (i + run < tokens && places()[i + run] == first + run) ++run;
      const char* from = values + i * row_bytes;
      char* to = result(first + begin * stride);
      if (run == 1 && stride == 1) {
        memcpy(to, from, static_cast<size_t>((end - begin) * result_bytes));
      } else {
        call.kernels.transpose(from, kChunkRows, run, end - begin, to, stride, result_bytes);
      }
      i += run;
    }
  }

  // The same of signs: bits from `first` on of each token's kChunkRows.
  void store_rows_of_signs(int64_t begin, int64_t end, int64_t first) const {
    const uint8_t* bits = at<uint8_t>(call.layout.results);
    for (int64_t i = 0; i < tokens; ++i) {
      copy_bits(static_cast<uint8_t*>(call.y.data), places()[i] + begin, bits, i * kChunkRows + first,
                end - begin);
    }
  }

  // Hands on to the samples what the kernels said of tokens.
  void mark_samples() const {
    const float* marks = at<float>(call.layout.marks);
    for (int64_t i = 0; i < run_count; ++i) {
      const Run& run = runs()[i];
      for (int64_t t = run.token; t < run.token + run.count; ++t) {
        if (marks[t] != 1.0f) mark_not_finite(call.task.y_scale + run.sample);
      }
    }
  }

  // Rows [begin, end), at most kChunkRows, of which those of the group are stored.
  void compute(int64_t begin, int64_t end) {
    const int64_t group_begin = group * plan.group_rows;
    const int64_t group_end = group_begin + plan.group_rows;
    const int64_t store_begin = begin > group_begin ? begin : group_begin;
    const int64_t store_end = end < group_end ? end : group_end;
    LinearTask task = slice(call.task, begin, end);
    task.x = activations();
    task.y_dtype = call.y.dtype;
    const bool direct = step >= 0 && call.y.channel_stride == 1 && store_begin == begin &&
                        store_end == end && (!call.signs || begin % 8 == 0);
    float least[kChunkRows], most[kChunkRows];
    if (call.signs) {
      // Rows of a neighbouring group see activations that are not theirs: whatever they give is fine.
      for (int64_t r = begin; r < end; ++r) {
        const bool own = r >= store_begin && r < store_end;
        least[r - begin] = own ? task.least[r - begin] : -INFINITY;
        most[r - begin] = own ? task.most[r - begin] : INFINITY;
      }
      task.least = least;
      task.most = most;
      task.y_scale = at<float>(call.layout.marks);
    }
    task.y = direct ? result(places()[0] + begin) : scratch + call.layout.results;
    task.y_stride = direct ? step : kChunkRows;
    if (border && plan.corrects) {
      find_outside(plan, call.layout, call.base, scratch, runs(), run_count, task.components, begin,
                   end - begin);
      task.x.outside = at<const int32_t*>(call.layout.outside_at);
      task.x.outside_stride = kChunkRows;
    }
    if (plan.depthwise) {
      run_depthwise(call.kernels, plan, call.layout, call.base, scratch, runs(), run_count, task, begin);
    } else {
      run_kernel(task);
    }
    if (call.signs) mark_samples();
    if (direct) return;
    if (call.signs) return store_rows_of_signs(store_begin, store_end, store_begin - begin);
    const char* results = scratch + call.layout.results + (store_begin - begin) * result_bytes;
    store(store_begin, store_end, results);
  }

  // Row units [begin, end) of a group.
  void run(int64_t begin, int64_t end) {
    const int64_t first = first_row_of(call, group);
    int64_t last = (group + 1) * plan.group_rows;
    if (call.task.format != BITIMPL_BINARY) {
      // The last block of a group goes on as long as it has rows: they share bytes.
      last = (last + call.unit_rows - 1) / call.unit_rows * call.unit_rows;
      if (last > plan.rows) last = plan.rows;
    }
    int64_t row = first + begin * call.unit_rows;
    int64_t stop = first + end * call.unit_rows;
    if (stop > last) stop = last;
    for (; row < stop; row += kChunkRows) {
      compute(row, row + kChunkRows < stop ? row + kChunkRows : stop);
    }
  }
};

// Range over (tile, conv group, row unit), rows innermost: what was gathered serves them all.
void run_range(void* context, int thread, int64_t begin, int64_t end) {
  const ConvCall& call = *static_cast<const ConvCall*>(context);
  Worker worker(call, call.base + call.layout.scratch + call.layout.scratch_stride * thread);
  begin *= call.together;
  end *= call.together;
  while (begin < end) {
    const int64_t product = begin / call.units;
    const int64_t product_end = (product + 1) * call.units < end ? (product + 1) * call.units : end;
    worker.enter_tile(product / call.plan.groups);
    worker.enter_group(product % call.plan.groups);
    worker.run(begin - product * call.units, product_end - product * call.units);
    begin = product_end;
  }
}

void run_tiles(const KernelTable& kernels, const ConvPlan& plan, const ConvLayout& layout,
               const LinearTask& task, const bitimpl_image& y, char* base, int threads) {
  const bool signs = y.dtype == BITIMPL_SIGNS;
  const int64_t unit_rows = plan.depthwise ? kDepthwiseRows : unit_rows_of(task.format, signs);
  const int64_t units = units_of_group(plan, task.format, unit_rows);
  int64_t tiles = (plan.tokens + plan.tile_tokens - 1) / plan.tile_tokens;
  const int64_t parts = token_parts(plan.groups * units, plan.tokens, threads);
  if (parts > tiles) tiles = parts;
  LinearTask whole = task;
  whole.x = form_of(plan, plan.tokens);
  const double work = operator_work(whole);
  // Where groups end within a byte of signs, a thread takes all of a token.
  const bool apart = !signs || plan.groups == 1 || plan.group_rows % 8 == 0;
  const int64_t together = apart ? 1 : plan.groups * units;
  ConvCall call = {kernels, plan, layout, task, y, base, tiles, units, unit_rows, together, signs};
  parallel_ranges(tiles * plan.groups * units / together, apart ? units : 1, work, threads, run_range,
                  &call);
}

int check_no_signs(const bitimpl_image& x, const bitimpl_image& y) {
  if (x.dtype != BITIMPL_SIGNS && y.dtype != BITIMPL_SIGNS) return BITIMPL_OK;
  return fail(BITIMPL_INVALID_ARGUMENT, "%s is of signs (dtype %d): call bitimpl_conv_signs",
              x.dtype == BITIMPL_SIGNS ? "x" : "y", BITIMPL_SIGNS);
}

// `signs`: null where neither x nor y may be of signs.
int run_conv(Operator op, const bitimpl_weight* weight, const bitimpl_conv* conv,
             const bitimpl_image* x, int32_t activation, const void* bias, int32_t bias_dtype,
             const bitimpl_image* y, const bitimpl_signs* signs, void* workspace,
             int64_t workspace_bytes) {
  const KernelTable* kernels = active_kernels();
  if (kernels == nullptr) return BITIMPL_UNSUPPORTED;
  ConvPlan plan;
  int status = check_weight(weight, true);
  if (status == BITIMPL_OK) status = check_operator(op, "conv", *weight, activation);
  if (status == BITIMPL_OK) status = plan_conv(*weight, conv, x, activation, &plan);
  if (status == BITIMPL_OK) status = check_image_data(*x, "x");
  if (status == BITIMPL_OK) status = check_conv_output(*weight, *x, plan.sizes, y);
  if (status == BITIMPL_OK) status = check_image_data(*y, "y");
  if (status == BITIMPL_OK) status = check_bias(bias, bias_dtype);
  if (status == BITIMPL_OK && signs == nullptr) status = check_no_signs(*x, *y);
  if (status != BITIMPL_OK) return status;

  LinearTask task = describe(*weight);
  const ConvLayout layout = lay_out_conv(*kernels, plan, task);
  const int64_t least = layout.scratch + layout.scratch_stride + 63;
  if (workspace == nullptr || workspace_bytes < least) {
    return fail(BITIMPL_INVALID_ARGUMENT,
                "workspace holds %lld bytes at %p, one thread needs %lld: "
                "size it with bitimpl_conv_workspace",
                show(workspace_bytes), workspace, show(least));
  }
  record_served(op == Operator::kBinary ? "binary_conv" : "ternary_conv",
                name_of_format(weight->format), form_of(plan, plan.tokens), kernels->isa,
                plan.depthwise ? "depthwise" : nullptr);
  if (plan.tokens == 0) return BITIMPL_OK;

  char* base = aligned_base(workspace);
  int threads = available_threads();
  const int64_t slices = (workspace_bytes - 63 - layout.scratch) / layout.scratch_stride;
  if (slices < threads) threads = static_cast<int>(slices);
  if (x->dtype == BITIMPL_SIGNS) {
    take_signs(*kernels, plan, *x, signs->x_scale, layout, base, threads);
  } else {
    quantize_image(*kernels, plan, *x, layout, base, threads);
  }
  if (y->dtype == BITIMPL_SIGNS) {
    set_thresholds(*signs, &task);
    begin_signs(*y, signs->y_scale);
  }
  if (plan.corrects) sum_taps(*kernels, plan, task, layout, base, threads);
  if (plan.depthwise) {
    status = bitimpl_unpack(weight, reinterpret_cast<int8_t*>(base + layout.unpacked));
    if (status != BITIMPL_OK) return status;
    spread_weights(plan, layout, task, base);
  }
  task.bias = float_bias(*kernels, bias, bias_dtype, task.rows,
                         reinterpret_cast<float*>(base + layout.bias));
  run_tiles(*kernels, plan, layout, task, *y, base, threads);
  return BITIMPL_OK;
}

}  // namespace
}  // namespace bitimpl

extern "C" {

int64_t bitimpl_conv_workspace(const bitimpl_weight* weight, const bitimpl_conv* conv,
                               const bitimpl_image* x, int32_t activation) {
  using namespace bitimpl;
  clear_error();
  const KernelTable* kernels = active_kernels();
  if (kernels == nullptr || check_weight(weight, false) != BITIMPL_OK) return -1;
  if (check_operator(operator_of(weight->format), "conv", *weight, activation) != BITIMPL_OK) return -1;
  ConvPlan plan;
  if (plan_conv(*weight, conv, x, activation, &plan) != BITIMPL_OK) return -1;
  const ConvLayout layout = lay_out_conv(*kernels, plan, describe(*weight));
  return layout.scratch + layout.scratch_stride * available_threads() + 63;
}

int bitimpl_binary_conv(const bitimpl_weight* weight, const bitimpl_conv* conv,
                        const bitimpl_image* x, int32_t activation, const void* bias,
                        int32_t bias_dtype, const bitimpl_image* y, void* workspace,
                        int64_t workspace_bytes) {
  bitimpl::clear_error();
  return bitimpl::run_conv(bitimpl::Operator::kBinary, weight, conv, x, activation, bias, bias_dtype, y,
                           nullptr, workspace, workspace_bytes);
}

int bitimpl_ternary_conv(const bitimpl_weight* weight, const bitimpl_conv* conv,
                         const bitimpl_image* x, int32_t activation, const void* bias,
                         int32_t bias_dtype, const bitimpl_image* y, void* workspace,
                         int64_t workspace_bytes) {
  bitimpl::clear_error();
  return bitimpl::run_conv(bitimpl::Operator::kTernary, weight, conv, x, activation, bias, bias_dtype, y,
                           nullptr, workspace, workspace_bytes);
}

int bitimpl_conv_signs(const bitimpl_weight* weight, const bitimpl_conv* conv, const bitimpl_image* x,
                       int32_t activation, const void* bias, int32_t bias_dtype,
                       const bitimpl_image* y, const bitimpl_signs* signs, void* workspace,
                       int64_t workspace_bytes) {
  using namespace bitimpl;
  clear_error();
  const int status =
      check_signs(signs, "conv", x != nullptr && x->dtype == BITIMPL_SIGNS,
                  y != nullptr && y->dtype == BITIMPL_SIGNS, x == nullptr ? 0 : x->samples, activation);
  if (status != BITIMPL_OK) return status;
  const Operator op = weight == nullptr ? Operator::kTernary : operator_of(weight->format);
  return run_conv(op, weight, conv, x, activation, bias, bias_dtype, y, signs, workspace, workspace_bytes);
}

}  // extern "C"
