// What guard pages must notice, done on purpose through calls of the library: the tests' proof that a
// read or write outside of a buffer ends the driver, with a message that says where.
#include "sanitize_support.h"

namespace {

constexpr int64_t kColumns = 77;

// One row of activations to the int8 at `q`.
void quantise(const std::string& line, const Block& x, const Block& scale, uint8_t* q) {
  const bitimpl_matrix row = {x.data(), BITIMPL_F32, 0, 1, kColumns, kColumns};
  if (bitimpl_quantize_int8(&row, reinterpret_cast<int8_t*>(q),
                            reinterpret_cast<float*>(scale.data())) != BITIMPL_OK)
    stop(line, "quantize_int8 failed");
}

}  // namespace

void run_probe(const std::string& line) {
  announce(line, bitimpl_isa());
  Random random;
  Block x(kColumns * 4, "x");
  fill(x, BITIMPL_F32, random);
  const Block scale(4, "scale"), q(kColumns, "q");
  if (line == "probe read behind") {
    bitimpl_read(x.data(), static_cast<int64_t>(x.bytes) + 1);
  } else if (line == "probe read before") {
    bitimpl_read(x.data() - 1, static_cast<int64_t>(x.bytes));
  } else if (line == "probe write behind") {
    quantise(line, x, scale, q.data() + 1);
  } else if (line == "probe write before") {
    quantise(line, x, scale, q.data() - 1);
  } else if (line == "probe write input") {
    quantise(line, x, scale, x.data());
  } else if (line == "probe nothing") {
    quantise(line, x, scale, q.data());
  } else {
    stop(line, "no such probe");
  }
}
