# Script mode: writes OUTPUT (a header with HEARTH_GIT_COMMIT) for the checkout SOURCE, only when it changes.
#   cmake -DSOURCE=... -DOUTPUT=... -P GitCommit.cmake
set(commit "unknown")
execute_process(COMMAND git -C ${SOURCE} rev-parse HEAD OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET RESULT_VARIABLE failed)
if(NOT failed)
  set(commit ${head})
  execute_process(COMMAND git -C ${SOURCE} diff --quiet HEAD -- RESULT_VARIABLE dirty ERROR_QUIET)
  if(dirty)
    string(APPEND commit "-dirty")
  endif()
endif()
set(text "// Made by cmake/GitCommit.cmake.\n#pragma once\n#define HEARTH_GIT_COMMIT \"${commit}\"\n")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} old)
endif()
if(NOT "${old}" STREQUAL "${text}")
  file(WRITE ${OUTPUT} "${text}")
endif()
