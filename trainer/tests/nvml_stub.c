/* A small libnvidia-ml.so.1 for machines without a GPU: what pynvml, MLflow's GPU monitor and torch ask of it.
 *
 *   cc -shared -fPIC -o libnvidia-ml.so.1 nvml_stub.c
 *
 * NVML_STUB_DEVICES    how many devices, up to 9
 * NVML_STUB_NO_ENERGY  digits: the devices without an energy counter
 * NVML_STUB_NO_POWER   digits: the devices that tell no power either
 * NVML_STUB_FOLDER     a file `lost-K` there makes device K answer that it is lost, `hang-K` never answer again
 *
 * Device K draws 100 + 50 K watts when the library is loaded and 200 more with each second, so that its energy is known
 * exactly at any moment (stub_millijoules), and only the trapezoid rule integrates its power right.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DRIVER_LOADED_MILLIJOULES 7200000000.0 /* 2 kWh that went before */

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, LOST = 15 };

struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };

static double loaded;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

__attribute__((constructor)) static void load(void) { loaded = now(); }

static int named(const char *variable, int device) {
    const char *digits = getenv(variable);
    return digits && strchr(digits, '0' + device);
}

static int flagged(const char *flag, int device) {
    char path[4096];
    const char *folder = getenv("NVML_STUB_FOLDER");
    snprintf(path, sizeof path, "%s/%s-%d", folder ? folder : "/nonexistent", flag, device);
    return access(path, F_OK) == 0;
}

/* A handle is the device's number plus one, so that none is null. */
static int state(void *handle) {
    int device = (int)(intptr_t)handle - 1;
    while (flagged("hang", device)) pause();
    return flagged("lost", device) ? LOST : SUCCESS;
}

double stub_millijoules(int device) {
    double seconds = now() - loaded;
    return DRIVER_LOADED_MILLIJOULES + 1000 * ((100 + 50 * device) * seconds + 200 * seconds * seconds / 2);
}

int nvmlInit(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { return flags ? INVALID_ARGUMENT : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    const char *devices = getenv("NVML_STUB_DEVICES");
    *count = devices ? atoi(devices) : 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned device, void **handle) {
    *handle = (void *)(intptr_t)(device + 1);
    return state(*handle);
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    snprintf(version, size, "stub");
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    snprintf(uuid, size, "GPU-%d0000000-0000-0000-0000-000000000000", (int)(intptr_t)handle - 1);
    return state(handle);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    snprintf(name, size, "Stub %d", (int)(intptr_t)handle - 1);
    return state(handle);
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    memory->total = 16ULL << 30;
    memory->used = memory->free = 8ULL << 30;
    return state(handle);
}

int nvmlDeviceGetUtilizationRates(void *handle, struct utilization *rates) {
    rates->gpu = 10 * (unsigned)(intptr_t)handle; /* device 0: 10 %, device 1: 20 %, … */
    rates->memory = 5;
    return state(handle);
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) {
    *milliwatts = 700000;
    return state(handle);
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    int device = (int)(intptr_t)handle - 1;
    *milliwatts = (unsigned)(1000 * (100 + 50 * device + 200 * (now() - loaded)));
    return named("NVML_STUB_NO_POWER", device) ? NOT_SUPPORTED : state(handle);
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *millijoules) {
    int device = (int)(intptr_t)handle - 1;
    *millijoules = (unsigned long long)stub_millijoules(device);
    return named("NVML_STUB_NO_ENERGY", device) ? NOT_SUPPORTED : state(handle);
}
