// Twins of those functions of device.cuh that are assembly there. Fragments lie as the PTX ISA says.
#pragma once

#include "intrinsics.h"
