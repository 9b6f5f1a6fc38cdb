// The engine for x86-64 with AVX-512.
#include "handlers.h"
