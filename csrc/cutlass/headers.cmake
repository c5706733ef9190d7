# Where CUTLASS's headers are, and how to get them. A reason is given where something that was named, or was
# fetched, will not do; where there is simply nothing, neither headers nor a reason.
set(bitimpl_cutlass_package "nvidia-cutlass==4.2.0.0")
set(bitimpl_cutlass_wheel "nvidia_cutlass-4.2.0.0-py3-none-any.whl")
set(bitimpl_cutlass_sha256 f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6)
set(bitimpl_cutlass_folder "cutlass_library/source/include")  # of the package, in site-packages

# The folder to include from: CUTLASS_DIR (a variable, or of the environment) where that is given, else the
# package's.
function(bitimpl_find_cutlass headers reason)
  set(${headers} "" PARENT_SCOPE)
  set(${reason} "" PARENT_SCOPE)
  foreach(given "${CUTLASS_DIR}" "$ENV{CUTLASS_DIR}")
    if(given)
      foreach(folder "${given}/include" "${given}")
        if(EXISTS "${folder}/cutlass/cutlass.h")
          set(${headers} "${folder}" PARENT_SCOPE)
          return()
        endif()
      endforeach()
      set(${reason} "CUTLASS_DIR=${given} has no include/cutlass/cutlass.h" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  bitimpl_python_packages(paths)
  foreach(path IN LISTS paths)
    if(EXISTS "${path}/${bitimpl_cutlass_folder}/cutlass/cutlass.h")
      set(${headers} "${path}/${bitimpl_cutlass_folder}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# Those of the package, fetched by pip into the build folder, of the very bytes that this was tested with.
function(bitimpl_fetch_cutlass headers reason)
  set(${headers} "" PARENT_SCOPE)
  set(${reason} "" PARENT_SCOPE)
  set(fetched "${CMAKE_CURRENT_BINARY_DIR}/fetched")
  set(wheel "${fetched}/${bitimpl_cutlass_wheel}")
  if(NOT EXISTS "${wheel}")
    bitimpl_find_python(python)
    if(NOT python)
      set(${reason} "its headers are not here, and there is no Python to fetch them" PARENT_SCOPE)
      return()
    endif()
    # -I: a build in an environment of its own hides the pip around it by PYTHONPATH.
    execute_process(
      COMMAND "${python}" -I -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all:
              --dest "${fetched}" "${bitimpl_cutlass_package}"
      OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
    if(failed OR NOT EXISTS "${wheel}")
      string(STRIP "${output}" output)
      set(${reason} "its headers are not here, and could not be fetched (${python} -m pip download \
${bitimpl_cutlass_package}: ${output})" PARENT_SCOPE)
      return()
    endif()
  endif()
  file(SHA256 "${wheel}" found)
  if(NOT found STREQUAL bitimpl_cutlass_sha256)
    file(REMOVE "${wheel}")
    set(${reason} "what was fetched as ${bitimpl_cutlass_package} is not what was expected (SHA-256 \
${found}, not ${bitimpl_cutlass_sha256})" PARENT_SCOPE)
    return()
  endif()
  if(NOT EXISTS "${wheel}.complete")  # not what an interrupted build left
    file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${fetched}" PATTERNS "${bitimpl_cutlass_folder}/*")
    file(TOUCH "${wheel}.complete")
  endif()
  set(${headers} "${fetched}/${bitimpl_cutlass_folder}" PARENT_SCOPE)
endfunction()

# "4.2.0", or "0" where the headers do not say.
function(bitimpl_cutlass_version result headers)
  set(version "")
  set(file "${headers}/cutlass/version.h")
  foreach(part MAJOR MINOR PATCH)
    set(line "")
    if(EXISTS "${file}")
      file(STRINGS "${file}" line REGEX "^#define CUTLASS_${part} +[0-9]+" LIMIT_COUNT 1)
    endif()
    string(REGEX MATCH "[0-9]+" number "${line}")
    list(APPEND version "${number}")
  endforeach()
  list(JOIN version "." version)
  if(NOT version MATCHES "^[0-9]+\\.[0-9]+\\.[0-9]+$")
    set(version 0)
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()
