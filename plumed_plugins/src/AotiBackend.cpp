// AOTInductor packages (.pt2): machine code made by torch.export, value and gradient in one call.
#include "Backend.h"
#include "TorchGuard.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace ccg {

namespace {

using Loader = torch::inductor::AOTIModelPackageLoader;

bool cpuHas(const std::string& feature) {
#if defined(__x86_64__)
  // __builtin_cpu_supports takes literals only.
  if (feature == "avx512f") {
    return __builtin_cpu_supports("avx512f");
  }
  if (feature == "avx2") {
    return __builtin_cpu_supports("avx2");
  }
  if (feature == "fma") {
    return __builtin_cpu_supports("fma");
  }
#endif
  return feature.empty();  // a name that this plug-in does not know is a CPU that it cannot vouch for
}

/// A .pt2 is machine code of the exporting machine's kind; elsewhere its first instruction could be an illegal one,
/// which no handler turns into a message.
void checkCpu(const Contract& contract) {
  for (const std::string& feature : contract.cpu) {
    if (!cpuHas(feature)) {
      throw std::runtime_error("the model was compiled for a CPU with " + feature + ", this CPU has none; export it "
                               "on this machine, or with portable=True");
    }
  }
}

/// The loader unpacks into the temporary folder and cleans up in its destructor, which never runs where the MD engine
/// ends by exit(), as GROMACS does after an error. So it unpacks into a folder of ours, gone as soon as the code is mapped.
class PrivateTemporary {
public:
  PrivateTemporary() {
    std::string path = (std::filesystem::temp_directory_path() / "ccg_torch_model_XXXXXX").string();
    if (!mkdtemp(path.data())) {
      throw std::runtime_error("no folder can be made in " + std::filesystem::temp_directory_path().string() +
                               "; set TMPDIR to one with free space");
    }
    path_ = path;
    if (const char* before = std::getenv("TMPDIR")) {
      before_ = before;
      wasSet_ = true;
    }
    setenv("TMPDIR", path.c_str(), 1);
  }
  ~PrivateTemporary() {
    if (wasSet_) {
      setenv("TMPDIR", before_.c_str(), 1);
    } else {
      unsetenv("TMPDIR");
    }
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  PrivateTemporary(const PrivateTemporary&) = delete;
  PrivateTemporary& operator=(const PrivateTemporary&) = delete;

private:
  std::filesystem::path path_;
  std::string before_;
  bool wasSet_ = false;
};

class AotiBackend : public Backend {
public:
  AotiBackend(const std::string& path, const Contract& contract)
    : nOut_(contract.outputs.size()),
      input_(at::zeros({1, contract.inputs()}, contract.dtype == "float64" ? at::kDouble : at::kFloat)) {
    // The compiled code checks neither size nor type of its inputs, and reads past the buffer, unless this is set
    // before its first run.
    setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
    const PrivateTemporary here;
    // Single-threaded: without the pool's locks and without a second runner.
    loader_ = std::make_unique<Loader>(path, "model", true, 1, -1);
  }

  void evaluate(const double* input, double* values, double* gradient) override {
    withTorch([&] {
      const at::NoGradGuard noGrad;
      if (input_.scalar_type() == at::kFloat) {
        call<float>(input, values, gradient);
      } else {
        call<double>(input, values, gradient);
      }
    });
  }

private:
  template<class Real>
  void call(const double* input, double* values, double* gradient) {
    Real* buffer = input_.mutable_data_ptr<Real>();
    std::transform(input, input + input_.numel(), buffer, [](double x) {
      return static_cast<Real>(x);
    });
    const std::vector<at::Tensor> outputs = loader_->run({input_});
    copy<Real>(outputs, 0, nOut_, values);
    copy<Real>(outputs, 1, nOut_ * input_.numel(), gradient);
  }

  template<class Real>
  static void copy(const std::vector<at::Tensor>& outputs, std::size_t index, std::int64_t size, double* to) {
    if (index >= outputs.size() || outputs[index].numel() != size) {
      throw std::runtime_error("the model's output " + std::to_string(index + 1) + " has not the size of its contract");
    }
    const at::Tensor whole = outputs[index].contiguous();
    const Real* from = whole.const_data_ptr<Real>();
    std::copy(from, from + size, to);
  }

  std::int64_t nOut_;
  at::Tensor input_;
  std::unique_ptr<Loader> loader_;
};

}

Model openAoti(const std::string& path) {
  return withTorch([&] {
    const PrivateTemporary here;  // this unpacks too
    const auto metadata = Loader::load_metadata_from_package(path, "model");
    const auto found = metadata.find("ccg_contract");
    if (found == metadata.end()) {
      throw std::runtime_error("the package has no contract (metadata \"ccg_contract\"); its code would read past "
                               "inputs of another size: export it with ccg_gmx.export.torch_model");
    }
    Model model;
    model.contract = Contract::fromJson(Json::parse(found->second));
    if (model.contract.backend != "aoti") {
      throw std::runtime_error("the contract is one for \"" + model.contract.backend + "\", a .pt2 file holds aoti");
    }
    checkCpu(model.contract);
    model.backend = std::make_unique<AotiBackend>(path, model.contract);
    model.description = "AOTInductor, " + model.contract.dtype + ", libtorch " TORCH_VERSION;
    return model;
  });
}

}
