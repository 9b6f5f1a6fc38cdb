// The engine for x86-64 with AVX2 and FMA.
#include "handlers.h"
