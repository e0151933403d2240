# The package's two binaries: libvariate_torch, the ops on the LibTorch stable ABI, and _C, the pybind11 module.
if(NOT VARIATE_TORCH_DIR)
  message(FATAL_ERROR
    "variate builds against the torch that is installed, and ${Python_EXECUTABLE} has none. "
    "Install torch >= 2.11, then: pip install --no-build-isolation .")
endif()
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "The headers of ${Python_EXECUTABLE} are missing. Install them (python3-dev on Debian and Ubuntu).")
endif()

add_library(variate_torch MODULE csrc/torch/library.cpp)
foreach(family ${VARIATE_FAMILIES})
  target_sources(variate_torch PRIVATE csrc/torch/${family}.cpp)
endforeach()
target_include_directories(variate_torch SYSTEM PRIVATE ${VARIATE_TORCH_DIR}/include)
# One build loads on every torch from 2.11 on.
target_compile_definitions(variate_torch PRIVATE TORCH_TARGET_VERSION=0x020b000000000000)
if(VARIATE_WITH_CUDA)
  target_compile_definitions(variate_torch PRIVATE VARIATE_WITH_CUDA)
endif()
target_compile_options(variate_torch PRIVATE -O2 -Wall -Wextra)
target_link_directories(variate_torch PRIVATE ${VARIATE_TORCH_DIR}/lib)
target_link_libraries(variate_torch PRIVATE variate torch_cpu ${CMAKE_DL_LIBS})
set_target_properties(variate_torch PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../../torch/lib")
install(TARGETS variate_torch LIBRARY DESTINATION ${VARIATE_LIB_DIR} COMPONENT variate)

find_package(pybind11 CONFIG REQUIRED)
pybind11_add_module(_C csrc/python/module.cpp)
target_link_libraries(_C PRIVATE variate)
set_target_properties(_C PROPERTIES INSTALL_RPATH "$ORIGIN/lib")
install(TARGETS _C LIBRARY DESTINATION variate COMPONENT variate)
