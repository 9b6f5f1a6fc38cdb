// The engine for any processor of the architecture.
#include "handlers.h"
