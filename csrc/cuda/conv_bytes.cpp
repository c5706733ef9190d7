// Convolutions of bytes on the host side: how one is served, the division of the workspace, the loop over chunks.
#include "conv_bytes.h"

#include "bit_kernels.h"
#include "choice.h"
#include "workspace.h"

namespace bitimpl {
namespace cuda {
namespace {

// The kernels of the linear layers that take gathered windows, in the order of preference.
const LinearKernel* const kGathering[] = {
#ifdef BITIMPL_HAS_SM90A
    &kWgmma,
#endif
    &kGemm, &kSmallBatch, &kGemv};
const char* const kGatheringNames[] = {
#ifdef BITIMPL_HAS_SM90A
    "gather+wgmma",
#endif
    "gather+gemm", "gather+small_batch", "gather+gemv"};
const ByteService kDirectly = {nullptr, "any"};

constexpr int64_t kChunkBytes = int64_t{32} << 20;  // gathered at a time: part of the second cache
constexpr int64_t kTokensTogether = 128;            // chunks hold multiples of what kernels take side by side,
constexpr int64_t kFewestTokens = 16;               // and this many at least
constexpr int64_t kTileRoom = 64;                   // tokens that lie in tiles fill whole ones of up to so many

int64_t positions_of(const ByteConv& task) { return task.samples * task.windows.positions; }

// The weight as the linear kernels read it: binary ones as two_bit ones, whose codes are to be written.
Weight gathering_weight(const ByteConv& task) {
  Weight w = task.weight;
  w.per_byte = w.format == BITIMPL_BASE3 ? 5 : 4;
  if (w.format == BITIMPL_BINARY) w.format = BITIMPL_TWO_BIT;
  w.groups = (w.rows + w.per_byte - 1) / w.per_byte;
  return w;
}

// What a chunk needs besides the image.
struct Gathered {
  uint8_t* spread;  // codes of a binary weight
  Tokens tokens;
  void* y;          // where y itself does not lie as the kernels write it
  void* scratch;
};

int32_t chunk_dtype(const ByteConv& task) {
  return task.result.dtype == BITIMPL_SIGNS ? BITIMPL_F32 : task.result.dtype;
}

// Whether the channels of a position lie together in y, and positions evenly spaced.
bool lies_in_rows(const ByteConv& task) {
  const BitResult& y = task.result;
  const Windows& v = task.windows;
  if (y.dtype == BITIMPL_SIGNS || (y.channel_stride != 1 && task.weight.rows > 1)) return false;
  int64_t positions = 1;
  int64_t step = 0;
  const auto joins = [&](int64_t size, int64_t stride) {
    if (size == 1) return true;
    if (positions == 1) step = stride;
    const bool joined = stride == positions * step;
    positions *= size;
    return joined;
  };
  return joins(v.out[2], y.spatial_stride[2]) && joins(v.out[1], y.spatial_stride[1]) &&
         joins(v.out[0], y.spatial_stride[0]) && joins(task.samples, y.sample_stride);
}

// Elements from one position of such a y to the next.
int64_t row_stride_of(const ByteConv& task) {
  const BitResult& y = task.result;
  for (int d = 2; d >= 0; --d) {
    if (task.windows.out[d] > 1) return y.spatial_stride[d];
  }
  return task.samples > 1 ? y.sample_stride : task.weight.rows;
}

const void* advance(const void* from, int32_t dtype, int64_t elements) {
  if (from == nullptr) return nullptr;
  return static_cast<const char*>(from) + elements * bytes_of_dtype(dtype);
}

// The product of a group's rows with a chunk.
LinearTask product_of(const ByteConv& task, const Chunk& chunk, const Gathered& memory) {
  const int64_t row = chunk.group * task.group_rows;
  LinearTask product = {};
  Weight& w = product.weight;
  w = gathering_weight(task);
  if (task.weight.format == BITIMPL_BINARY) w.codes = memory.spread;
  if (w.codes != nullptr) w.codes += row / w.per_byte * w.components * w.cols;
  w.scales = advance(w.scales, w.scale_dtype, row * w.scale_row_stride);
  w.rows = task.group_rows;
  w.groups = (w.rows + w.per_byte - 1) / w.per_byte;
  product.source.activation = task.activation;
  product.x = memory.tokens;
  product.x.planes = task.planes;
  product.x.rows = chunk.count;
  product.x.row_bytes = int64_t{kStep} * w.steps;
  product.x.prepared = true;
  const BitResult& y = task.result;
  product.result = {memory.y, advance(y.bias, y.bias_dtype, row), task.group_rows, chunk_dtype(task), y.bias_dtype};
  if (lies_in_rows(task)) {
    product.result.row_stride = row_stride_of(task);
    product.result.y = const_cast<void*>(advance(y.y, y.dtype, chunk.first * product.result.row_stride + row));
  }
  return product;
}

// Why windows cannot be gathered for the linear kernels; null: they can.
const char* refuses_to_gather(const ByteConv& task) {
  const int64_t block = kBlockGroups * gathering_weight(task).per_byte;
  if (task.groups > 1 && task.group_rows % block != 0) return "the rows of its groups are no whole row blocks";
  // Groups are stored one after the other.
  if (task.groups > 1 && task.result.dtype == BITIMPL_SIGNS && task.group_rows % 8 != 0) {
    return "signs of y of several groups share a byte";
  }
  return nullptr;
}

// Whether tensor cores win more than gathering costs.
bool wants_to_gather(const ByteConv& task) {
  return task.weight.cols >= kStep && task.group_rows >= (task.groups == 1 ? 16 : 64);
}

int64_t largest_chunk(const ByteConv& task) {
  const int64_t token_bytes = int64_t{kStep} * task.weight.steps * task.planes;
  const int64_t most = kChunkBytes / token_bytes / kTokensTogether * kTokensTogether;
  return most > kTokensTogether ? most : kTokensTogether;
}

// Chunks of at most `most` positions, all but the last of one size.
int64_t even_chunk(const ByteConv& task, int64_t most) {
  const int64_t positions = positions_of(task);
  if (positions <= most) return positions;
  const int64_t chunks = (positions + most - 1) / most;
  const int64_t together = most % kTokensTogether == 0 ? kTokensTogether : kFewestTokens;
  return ((positions + chunks - 1) / chunks + together - 1) / together * together;
}

LinearTask sized_product(const ByteConv& task, int64_t positions) { return product_of(task, {0, positions, 0}, {}); }

// Gives the task its memory; returns that of the kernel "any": the decoded weight.
void* divide(ByteConv* task, const ByteService& service, Divider* memory) {
  const int64_t pixels = task->samples * task->windows.pixels;
  for (int plane = 0; plane < task->planes; ++plane) {
    task->image[plane] = memory->take<int8_t>(pixels * task->pixel_bytes);
    task->border[plane] = memory->take<uint32_t>(task->samples);
  }
  task->scale = memory->take<float>(task->samples);
  const int64_t sums = task->samples * task->pieces;
  const bool ternary = task->activation == BITIMPL_ACTIVATION_TERNARY;
  if (task->activation != BITIMPL_ACTIVATION_SIGN) task->measured = memory->take<double>(sums);
  if (ternary || task->activation == BITIMPL_ACTIVATION_SIGN) task->kept = memory->take<double>(sums);
  if (ternary) task->counts = memory->take<double>(sums);
  return service.linear == nullptr ? memory->take<char>(direct_codes_bytes(*task)) : nullptr;
}

// The same for chunks of so many positions.
Gathered divide_chunk(const ByteConv& task, const LinearKernel& kernel, const Device& device, int64_t chunk,
                      Divider* memory) {
  Gathered parts = {};
  const Weight w = gathering_weight(task);
  if (task.weight.format == BITIMPL_BINARY) parts.spread = memory->take<uint8_t>(w.components * w.groups * w.cols);
  const int64_t room = (chunk + kTileRoom - 1) / kTileRoom * kTileRoom;
  for (int plane = 0; plane < task.planes; ++plane) {
    parts.tokens.q[plane] = memory->take<int8_t>(room * kStep * w.steps);
    parts.tokens.sums[plane] = memory->take<int32_t>(chunk);
  }
  parts.tokens.scale = memory->take<float>(chunk);
  if (!lies_in_rows(task)) parts.y = memory->take<char>(chunk * task.group_rows * bytes_of_dtype(chunk_dtype(task)));
  if (!memory->counts()) {  // the last part: its size matters only where sizes are counted
    parts.scratch = memory->take<char>(0);
    return parts;
  }
  const int64_t positions = positions_of(task);
  const int64_t of_chunk = kernel.scratch(sized_product(task, chunk), device);
  const int64_t rest = positions % chunk;
  const int64_t of_rest = rest == 0 ? 0 : kernel.scratch(sized_product(task, rest), device);
  memory->take<char>(of_chunk > of_rest ? of_chunk : of_rest);
  return parts;
}

// Bytes of workspace with chunks of so many positions.
int64_t bytes_with(ByteConv task, const ByteService& service, const Device& device, int64_t chunk) {
  Divider sizes = {nullptr};
  divide(&task, service, &sizes);
  if (service.linear != nullptr && chunk > 0) divide_chunk(task, *service.linear, device, chunk, &sizes);
  return sizes.used;
}

int run_chunk(const ByteConv& task, const Chunk& chunk, const LinearKernel& kernel, const Gathered& memory,
              const Device& device, Stream stream) {
  LinearTask product = product_of(task, chunk, memory);
  product.x.tile = kernel.tile == nullptr ? 0 : kernel.tile(product);
  int status = gather_windows(task, chunk, product.x, stream);
  if (status == BITIMPL_OK) status = kernel.run(product, device, stream, memory.scratch);
  if (status != BITIMPL_OK || memory.y == nullptr) return status;
  return store_chunk(task, chunk, memory.y, product.result.dtype, stream);
}

}  // namespace

ByteConv describe_bytes(const BitTask& conv, int32_t activation) {
  ByteConv task = {};
  task.weight = conv.weight;
  task.windows = conv.windows;
  task.activation = activation;
  task.planes = activation == BITIMPL_ACTIVATION_INT16 ? 2 : 1;
  task.samples = conv.samples;
  task.groups = conv.groups;
  task.group_channels = conv.group_channels;
  task.group_rows = conv.group_rows;
  task.group_bytes = conv.group_channels == 1 ? 1 : (conv.group_channels + 3) / 4 * 4;
  task.pixel_bytes = (task.groups * task.group_bytes + 3) / 4 * 4;
  task.pieces = pieces_of_sample(task);
  task.source = conv.source;
  task.result = conv.result;
  return task;
}

bool choose_bytes(const ByteConv& task, const Device& device, ByteService* service, const char** why) {
  const char* selected = selected_kernel();
  const bool directly = selected != nullptr && strcmp(selected, kDirectly.name) == 0;
  if (!directly && (selected != nullptr || wants_to_gather(task))) {
    const char* reason = nullptr;
    const LinearTask product = sized_product(task, even_chunk(task, largest_chunk(task)));
    const LinearKernel* kernel = choose(kGathering, product, device, &reason);
    if (kernel != nullptr) reason = refuses_to_gather(task);
    size_t place = 0;
    while (kernel != nullptr && kGathering[place] != kernel) ++place;
    if (kernel != nullptr && reason == nullptr) {
      *service = {kernel, kGatheringNames[place]};
      return true;
    }
    if (selected != nullptr && (kernel != nullptr || *why == nullptr || strcmp(*why, kNoPart) == 0)) *why = reason;
  }
  if (!directly && (selected != nullptr || !may_choose(kDirectly.name, false, device))) return false;
  *service = kDirectly;
  return true;
}

int64_t byte_workspace(const ByteConv& task, const ByteService& service, const Device& device) {
  return workspace_for(bytes_with(task, service, device, even_chunk(task, largest_chunk(task))));
}

int run_bytes(const ByteCall& call, const ByteService& service, const Device& device, Stream stream) {
  ByteConv task = call.task;
  // As large chunks as the workspace holds.
  int64_t most = largest_chunk(task);
  int64_t chunk = even_chunk(task, most);
  while (service.linear != nullptr && chunk > kFewestTokens &&
         workspace_for(bytes_with(task, service, device, chunk)) > call.workspace_bytes) {
    most = chunk / 2 / kFewestTokens * kFewestTokens;
    if (most < kFewestTokens) most = kFewestTokens;
    chunk = even_chunk(task, most);
  }
  const int64_t used = bytes_with(task, service, device, chunk);
  char* base = aligned_workspace(call.workspace, call.workspace_bytes, used, call.query);
  if (base == nullptr) return last_status();
  Divider memory = {base};
  void* codes = divide(&task, service, &memory);
  Gathered parts = {};
  if (service.linear != nullptr) parts = divide_chunk(task, *service.linear, device, chunk, &memory);

  const DeviceGuard current(device.index);
  BitTask signs = {};  // of which begin_signs() wants the scales
  signs.samples = task.samples;
  signs.result = task.result;
  int status = task.result.dtype == BITIMPL_SIGNS ? begin_signs(signs, stream) : BITIMPL_OK;
  if (status == BITIMPL_OK) status = quantize_image(task, stream);
  if (service.linear == nullptr) return status == BITIMPL_OK ? convolve_directly(task, codes, stream) : status;

  if (parts.spread != nullptr && status == BITIMPL_OK) {
    Weight to = gathering_weight(task);
    to.codes = parts.spread;
    status = spread_bits(task.weight.codes, to, stream);
  }
  const int64_t positions = positions_of(task);
  for (int64_t first = 0; first < positions; first += chunk) {
    const int64_t left = positions - first;
    for (int64_t group = 0; group < task.groups && status == BITIMPL_OK; ++group) {
      status = run_chunk(task, {first, left < chunk ? left : chunk, group}, *service.linear, parts, device, stream);
    }
  }
  return status;
}

}  // namespace cuda
}  // namespace bitimpl
