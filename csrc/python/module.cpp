// variate._C: what the package asks of libvariate that is not an op.
#include <pybind11/pybind11.h>
#include <variate/variate.h>

#include <sstream>
#include <string>

namespace py = pybind11;

namespace {

py::list words(const std::string& text) {
  py::list parts;
  std::istringstream stream(text);
  for (std::string part; stream >> part;) parts.append(part);
  return parts;
}

py::dict build_info() {
  py::dict info;
  info["version"] = variate_version();
  info["noise_version"] = VARIATE_NOISE_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cpu_capability"] = variate_cpu_capability();
  info["cpu_capabilities"] = words(variate_cpu_capabilities());
  info["openmp"] = variate_has_openmp() != 0;
  info["cuda"] = *variate_cuda_architectures() != '\0';
  info["cuda_architectures"] = words(variate_cuda_architectures());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Facts about libvariate.";
  module.def("build_info", &build_info);
}
