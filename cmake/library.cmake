# libvariate: the C API over the CPU kernels, once per instruction set, and the CUDA kernels.
if(SKBUILD)
  # Inside the wheel: variate/{include,lib,share/cmake/variate}, where find_package looks for a package of this name.
  set(VARIATE_INCLUDE_DIR variate/include)
  set(VARIATE_LIB_DIR variate/lib)
  set(VARIATE_CMAKE_DIR variate/share/cmake/variate)
else()
  set(VARIATE_INCLUDE_DIR ${CMAKE_INSTALL_INCLUDEDIR})
  set(VARIATE_LIB_DIR ${CMAKE_INSTALL_LIBDIR})
  set(VARIATE_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/variate)
endif()

include(CheckCXXCompilerFlag)
find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  message(WARNING "variate: no OpenMP found, the CPU kernels will use one thread")
endif()

# No flag may change a result: products and sums are rounded where the source says so.
set(VARIATE_CPU_FLAGS -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Threading jumps around a clamp doubles the code of a vectorised loop; gcc 12 takes its own AVX-512 headers for
  # uninitialised; and a vector wider than the registers has no ABI, nor does one leave its function.
  list(APPEND VARIATE_CPU_FLAGS -fno-thread-jumps -Wno-maybe-uninitialized -Wno-psabi)
  # So does computing ahead what follows where a clamp holds; but other families gain by what else that pass does.
  set_source_files_properties(csrc/cpu/logistic.cpp PROPERTIES COMPILE_OPTIONS -fno-tree-pre)
endif()

# At -O1 the sanitizers see the same code and compile in a third of the time; no -O changes a result.
set(VARIATE_SANITIZE_FLAGS -fsanitize=${VARIATE_SANITIZE} -fno-sanitize-recover=all -O1 -g1)

set(VARIATE_FAMILIES random reparam relaxed elbo bound linear logistic lattice potts rbm denoise diffusion ema)
set(VARIATE_AMX_FAMILIES rbm)
set(VARIATE_CUDA_FAMILIES random reparam elbo logistic lattice denoise)

# The CPU kernels of the families for one instruction set: an object library of its own.
function(variate_cpu_kernels isa families)
  set(sources)
  foreach(family ${families})
    list(APPEND sources ${PROJECT_SOURCE_DIR}/csrc/cpu/${family}.cpp)
  endforeach()
  add_library(variate_cpu_${isa} OBJECT ${sources})
  target_include_directories(variate_cpu_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/csrc/include)
  target_compile_definitions(variate_cpu_${isa} PRIVATE VARIATE_BUILDING VARIATE_ISA=${isa})
  target_compile_options(variate_cpu_${isa} PRIVATE ${VARIATE_CPU_FLAGS} ${ARGN})
  if(OpenMP_CXX_FOUND)
    target_link_libraries(variate_cpu_${isa} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  if(VARIATE_SANITIZE)
    target_compile_options(variate_cpu_${isa} PRIVATE ${VARIATE_SANITIZE_FLAGS})
  endif()
  target_sources(variate PRIVATE $<TARGET_OBJECTS:variate_cpu_${isa}>)
endfunction()

add_library(variate SHARED csrc/api/core.cpp csrc/cpu/dispatch.cpp)
add_library(variate::variate ALIAS variate)
foreach(family ${VARIATE_FAMILIES})
  target_sources(variate PRIVATE csrc/api/${family}.cpp)
endforeach()
target_include_directories(variate PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
                                          $<INSTALL_INTERFACE:${VARIATE_INCLUDE_DIR}>)
target_compile_features(variate PUBLIC cxx_std_20)
target_compile_definitions(variate PRIVATE VARIATE_BUILDING)
string(REPLACE ";" " " architectures "${VARIATE_CUDA_ARCHITECTURES}")
set_source_files_properties(csrc/api/core.cpp PROPERTIES COMPILE_DEFINITIONS
                            "VARIATE_CUDA_ARCHITECTURES=\"${architectures}\"")
target_compile_options(variate PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O2 -Wall -Wextra>)
target_link_options(variate PRIVATE $<$<PLATFORM_ID:Linux>:-Wl,--exclude-libs,ALL>)
if(OpenMP_CXX_FOUND)
  target_link_libraries(variate PRIVATE OpenMP::OpenMP_CXX)
endif()
if(VARIATE_SANITIZE)
  target_compile_options(variate PRIVATE ${VARIATE_SANITIZE_FLAGS})
  target_link_options(variate PUBLIC -fsanitize=${VARIATE_SANITIZE})
endif()

set(all_kernels ${VARIATE_FAMILIES} table)
variate_cpu_kernels(portable "${all_kernels}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 ${avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512)
  variate_cpu_kernels(avx2 "${all_kernels}" ${avx2})
  variate_cpu_kernels(avx512 "${all_kernels}" ${avx512})
  target_compile_definitions(variate PRIVATE VARIATE_X86_KERNELS)
  # Tiles: the families that have a use for them, where the compiler and the system know them.
  set(amx -mamx-tile -mamx-int8)
  check_cxx_compiler_flag("${amx}" VARIATE_COMPILER_HAS_AMX)
  if(VARIATE_COMPILER_HAS_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    variate_cpu_kernels(amx "${VARIATE_AMX_FAMILIES}" ${avx512} ${amx})
    target_compile_definitions(variate PRIVATE VARIATE_AMX_KERNELS)
  endif()
endif()

if(VARIATE_WITH_CUDA)
  foreach(family ${VARIATE_CUDA_FAMILIES})
    target_sources(variate PRIVATE csrc/cuda/${family}.cu)
  endforeach()
  target_compile_definitions(variate PRIVATE VARIATE_WITH_CUDA)
  target_compile_options(variate PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)
  if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    set_target_properties(variate PROPERTIES CUDA_STANDARD 20)
  else()  # an older CMake does not know that nvcc has it
    set_target_properties(variate PROPERTIES CUDA_STANDARD 17)
    target_compile_options(variate PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
  set_target_properties(variate PROPERTIES CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(variate PRIVATE CUDA::cudart_static)
endif()

install(TARGETS variate EXPORT variateTargets COMPONENT variate
        LIBRARY DESTINATION ${VARIATE_LIB_DIR}
        ARCHIVE DESTINATION ${VARIATE_LIB_DIR}
        RUNTIME DESTINATION ${VARIATE_LIB_DIR})
install(DIRECTORY csrc/include/ DESTINATION ${VARIATE_INCLUDE_DIR} COMPONENT variate)
install(EXPORT variateTargets NAMESPACE variate:: DESTINATION ${VARIATE_CMAKE_DIR} COMPONENT variate)
include(CMakePackageConfigHelpers)
configure_package_config_file(cmake/variateConfig.cmake.in ${PROJECT_BINARY_DIR}/variateConfig.cmake
                              INSTALL_DESTINATION ${VARIATE_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/variateConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/variateConfig.cmake ${PROJECT_BINARY_DIR}/variateConfigVersion.cmake
        DESTINATION ${VARIATE_CMAKE_DIR} COMPONENT variate)
