# Where Python and torch are: only the package needs them, and AUTO asks torch whether it has CUDA.
find_package(Python 3.10 COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module QUIET)

set(VARIATE_TORCH_DIR "")
set(VARIATE_TORCH_CUDA "")
if(Python_Interpreter_FOUND)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import os, torch; print(os.path.dirname(torch.__file__)); print(torch.version.cuda or '')"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed EQUAL 0)
    string(REGEX REPLACE "\r?\n" ";" found "${found};")
    list(GET found 0 VARIATE_TORCH_DIR)
    list(GET found 1 VARIATE_TORCH_CUDA)
  endif()
endif()
