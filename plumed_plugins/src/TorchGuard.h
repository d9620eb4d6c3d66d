// What both torch back-ends need around every call into libtorch.
#ifndef CCG_TORCH_GUARD_H
#define CCG_TORCH_GUARD_H

#include "Backend.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <stdexcept>

namespace ccg {

/// One torch thread for the life of this object, then as many as before. The MD engine has its own threads for the same
/// cores, and at::set_num_threads would leak into a Python process that shares this libtorch (gmxapi).
class OneThread {
public:
  OneThread() : before_(at::get_num_threads()) {
    if (before_ != 1) {
      at::set_num_threads(1);
    }
  }
  ~OneThread() {
    if (before_ != 1) {
      at::set_num_threads(before_);
    }
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

private:
  int before_;
};

/// Run a piece of torch code; its errors become plain ones, in one line.
template<class Code>
auto withTorch(Code code) {
  const OneThread one;
  try {
    return code();
  } catch (const c10::Error& error) {
    // what() would print some twenty lines of libtorch's stack into the MD log.
    throw std::runtime_error("libtorch: " + firstLine(error.what_without_backtrace()));
  }
}

}

#endif
