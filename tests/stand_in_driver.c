/* A CUDA driver without a card, built as libcuda.so.1 for tests of the launcher.

   Memory is the host's, and a stream does at once what it is given. In place of the kernel, which the
   interpreter tests, a launch computes int16 volumes into float32 tokens from nothing but the
   arguments that it is handed, in the order of the launch contract (ARGUMENTS in
   kernels/variants.py); the small kernels of runtime/engines/arithmetic.py and pixels.py are computed
   likewise. Like the real driver it refuses work while no context is current. It reads from the environment, at each call:

     STAND_IN_CAPABILITY  compute capability, ten times
     STAND_IN_CUDA        newest CUDA of the driver, a thousand times; 13000 by default
     STAND_IN_NODE        "between" or "end": where a captured graph calls the host
     STAND_IN_FAILS       name of a call that runs out of memory
     STAND_IN_LATE        how many looks at an event come before it is past; 0 by default
     STAND_IN_FREE        MiB of the card's 8 GiB that are free; all by default
     STAND_IN_LOG         file to which every call is added, one a line */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT = 201, NOT_FOUND = 500,
       NOT_READY = 600 };
enum { MAJOR = 75, MINOR = 76, MULTIPROCESSORS = 16 };

static int depth, context, module, kernel, small_module, combine, affine, looks_module, pixels,
    check, stream, event, graph;

static int called(const char *name, int needs_context)
{
    const char *fails = getenv("STAND_IN_FAILS"), *path = getenv("STAND_IN_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) {
        fprintf(log, "%s\n", name);
        fclose(log);
    }
    if (fails && !strcmp(fails, name)) return OUT_OF_MEMORY;
    return needs_context && !depth ? INVALID_CONTEXT : SUCCESS;
}

#define CALLED(name, needs_context) \
    do { \
        const int status = called(name, needs_context); \
        if (status) return status; \
    } while (0)

static int init(unsigned flags)
{
    CALLED("cuInit", 0);
    return flags ? INVALID_VALUE : SUCCESS;
}

static int error_string(int status, const char **text)
{
    *text = status == OUT_OF_MEMORY ? "out of memory" : "something else";
    return SUCCESS;
}

static int device_count(int *count)
{
    CALLED("cuDeviceGetCount", 0);
    *count = 1;
    return SUCCESS;
}

static int device(int *handle, int number)
{
    CALLED("cuDeviceGet", 0);
    *handle = number;
    return SUCCESS;
}

static int attribute(int *value, int which, int handle)
{
    const int capability = atoi(getenv("STAND_IN_CAPABILITY"));
    CALLED("cuDeviceGetAttribute", 0);
    (void)handle;
    *value = which == MAJOR ? capability / 10 : capability % 10;
    return which == MAJOR || which == MINOR ? SUCCESS : INVALID_VALUE;
}

static int retain(void **to, int handle)
{
    CALLED("cuDevicePrimaryCtxRetain", 0);
    (void)handle;
    *to = &context;
    return SUCCESS;
}

static int release(int handle)
{
    CALLED("cuDevicePrimaryCtxRelease", 0);
    (void)handle;
    return SUCCESS;
}

static int push(void *which)
{
    CALLED("cuCtxPushCurrent", 0);
    depth++;
    return which == &context ? SUCCESS : INVALID_CONTEXT;
}

static int pop(void **which)
{
    CALLED("cuCtxPopCurrent", 1);
    depth--;
    *which = &context;
    return SUCCESS;
}

static int synchronize(void)
{
    CALLED("cuCtxSynchronize", 1);
    return SUCCESS;
}

static int allocate(uint64_t *pointer, size_t bytes)
{
    CALLED("cuMemAlloc", 1);
    *pointer = (uint64_t)(uintptr_t)malloc(bytes);
    if (*pointer) memset((void *)(uintptr_t)*pointer, 0xff, bytes); /* NaN */
    return bytes && *pointer ? SUCCESS : INVALID_VALUE;
}

static int memory_info(size_t *left, size_t *all)
{
    const char *mebibytes = getenv("STAND_IN_FREE");
    CALLED("cuMemGetInfo", 1);
    *all = (size_t)8 << 30;
    *left = mebibytes ? (size_t)atoi(mebibytes) << 20 : *all;
    return SUCCESS;
}

static int release_memory(uint64_t pointer)
{
    CALLED("cuMemFree", 1);
    free((void *)(uintptr_t)pointer);
    return SUCCESS;
}

static int upload(uint64_t to, const void *from, size_t bytes)
{
    CALLED("cuMemcpyHtoD", 1);
    memcpy((void *)(uintptr_t)to, from, bytes);
    return SUCCESS;
}

static int download(void *to, uint64_t from, size_t bytes)
{
    CALLED("cuMemcpyDtoH", 1);
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return SUCCESS;
}

static int load(void **to, const char *image)
{
    const int is_elf = !memcmp(image, "\x7f" "ELF", 4);
    CALLED("cuModuleLoadData", 1);
    if (!is_elf && strstr(image, ".visible .entry combine") && strstr(image, ".visible .entry affine")) {
        *to = &small_module;
        return SUCCESS;
    }
    if (!is_elf && strstr(image, ".visible .entry pixels") && strstr(image, ".visible .entry finite")) {
        *to = &looks_module;
        return SUCCESS;
    }
    *to = &module;
    return is_elf || strstr(image, ".visible .entry resample_kernel") ? SUCCESS : INVALID_VALUE;
}

static int unload(void *which)
{
    CALLED("cuModuleUnload", 1);
    return which == &module || which == &small_module || which == &looks_module ? SUCCESS
                                                                                 : INVALID_VALUE;
}

static int function(void **to, void *of, const char *name)
{
    CALLED("cuModuleGetFunction", 1);
    if (of == &small_module) {
        *to = !strcmp(name, "combine") ? &combine : !strcmp(name, "affine") ? &affine : NULL;
        return *to ? SUCCESS : NOT_FOUND;
    }
    if (of == &looks_module) {
        *to = !strcmp(name, "pixels") ? &pixels : !strcmp(name, "finite") ? &check : NULL;
        return *to ? SUCCESS : NOT_FOUND;
    }
    *to = &kernel;
    return of == &module && !strcmp(name, "resample_kernel") ? SUCCESS : NOT_FOUND;
}

/* Both neighbours of a position on one axis, in bytes, and whether it is inside. */
static int neighbours(double position, int32_t size, uint32_t stride, int64_t at[2], double *weight)
{
    const double low = floor(position);
    for (int side = 0; side < 2; side++) {
        const double voxel = fmin(fmax(low + side, 0), size - 1);
        at[side] = (int64_t)voxel * stride;
    }
    *weight = position - low;
    return position >= -0.5 - 0x1p-16 && position <= size - 0.5 + 0x1p-16;
}

static float read_number(const void *from, int64_t at, int half)
{
    return half ? (float)((const _Float16 *)from)[at] : ((const float *)from)[at];
}

static void write_number(void *to, int64_t at, float value, int half)
{
    if (half) ((_Float16 *)to)[at] = (_Float16)value;
    else ((float *)to)[at] = value;
}

/* target, sources, weights, terms, length, copies, half */
static int launch_combine(void **p)
{
    void *target = *(void **)p[0];
    const void *sources = *(void **)p[1];
    const float *weights = *(float **)p[2];
    const uint32_t terms = *(uint32_t *)p[3], length = *(uint32_t *)p[4];
    const uint32_t copies = *(uint32_t *)p[5], half = *(uint32_t *)p[6];
    for (int64_t i = 0; i < length; i++) {
        float sum = 0;
        for (int64_t j = 0; j < terms; j++)
            sum = fmaf(weights[j], read_number(sources, j * length + i, half & 1), sum);
        for (int64_t k = 0; k < copies; k++) write_number(target, k * length + i, sum, half & 2);
    }
    return SUCCESS;
}

/* target, source, scale, shift, length, half */
static int launch_affine(void **p)
{
    void *target = *(void **)p[0];
    const void *source = *(void **)p[1];
    const float *scale = *(float **)p[2], *shift = *(float **)p[3];
    const uint32_t length = *(uint32_t *)p[4], half = *(uint32_t *)p[5];
    for (int64_t i = 0; i < length; i++)
        write_number(target, i, fmaf(read_number(source, i, half & 1), scale[i], shift[i]), half & 2);
    return SUCCESS;
}

/* target, image, note, length, half */
static int launch_pixels(void **p)
{
    unsigned char *target = *(unsigned char **)p[0];
    const void *image = *(void **)p[1];
    uint32_t *note = *(uint32_t **)p[2];
    const uint32_t length = *(uint32_t *)p[3], half = *(uint32_t *)p[4];
    for (int64_t i = 0; i < length; i++)
        for (int64_t c = 0; c < 3; c++) {
            const float value = read_number(image, c * length + i, half & 1);
            if (!isfinite(value)) *note = 1;
            target[3 * i + c] = (unsigned char)rintf(fminf(fmaxf(value * 0.5f + 0.5f, 0), 1) * 255.0f);
        }
    return SUCCESS;
}

/* source, note, length, half */
static int launch_finite(void **p)
{
    const void *source = *(void **)p[0];
    uint32_t *note = *(uint32_t **)p[1];
    const uint32_t length = *(uint32_t *)p[2], half = *(uint32_t *)p[3];
    for (int64_t i = 0; i < length; i++)
        if (!isfinite(read_number(source, i, half & 1))) *note = 1;
    return SUCCESS;
}

static int stream_create(void **to, unsigned flags)
{
    CALLED("cuStreamCreate", 1);
    *to = &stream;
    return flags == 1 ? SUCCESS : INVALID_VALUE; /* non-blocking */
}

static int priority_range(int *lowest, int *highest)
{
    CALLED("cuCtxGetStreamPriorityRange", 1);
    *lowest = 0;
    *highest = -5;
    return SUCCESS;
}

static int stream_create_with_priority(void **to, unsigned flags, int priority)
{
    CALLED("cuStreamCreateWithPriority", 1);
    *to = &stream;
    return flags == 1 && priority == -5 ? SUCCESS : INVALID_VALUE;
}

static int stream_destroy(void *which)
{
    CALLED("cuStreamDestroy", 1);
    return which == &stream ? SUCCESS : INVALID_VALUE;
}

static int stream_synchronize(void *which)
{
    CALLED("cuStreamSynchronize", 1);
    return which == &stream ? SUCCESS : INVALID_VALUE;
}

static int set_bytes(uint64_t to, unsigned char value, size_t bytes, void *on)
{
    CALLED("cuMemsetD8Async", 1);
    memset((void *)(uintptr_t)to, value, bytes);
    return on == &stream ? SUCCESS : INVALID_VALUE;
}

static int host_allocate(void **to, size_t bytes, unsigned flags)
{
    CALLED("cuMemHostAlloc", 1);
    *to = malloc(bytes);
    return bytes && !flags && *to ? SUCCESS : INVALID_VALUE;
}

static int host_free(void *which)
{
    CALLED("cuMemFreeHost", 1);
    free(which);
    return SUCCESS;
}

static int upload_on(uint64_t to, const void *from, size_t bytes, void *on)
{
    CALLED("cuMemcpyHtoDAsync", 1);
    memcpy((void *)(uintptr_t)to, from, bytes);
    return on == &stream ? SUCCESS : INVALID_VALUE;
}

static int download_on(void *to, uint64_t from, size_t bytes, void *on)
{
    CALLED("cuMemcpyDtoHAsync", 1);
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return on == &stream ? SUCCESS : INVALID_VALUE;
}

static int copy_on(uint64_t to, uint64_t from, size_t bytes, void *on)
{
    CALLED("cuMemcpyDtoDAsync", 1);
    memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
    return on == &stream ? SUCCESS : INVALID_VALUE;
}

static int event_create(void **to, unsigned flags)
{
    CALLED("cuEventCreate", 1);
    *to = &event;
    return flags ? INVALID_VALUE : SUCCESS;
}

static int event_destroy(void *which)
{
    CALLED("cuEventDestroy", 1);
    return which == &event ? SUCCESS : INVALID_VALUE;
}

static int event_record(void *which, void *on)
{
    CALLED("cuEventRecord", 1);
    return which == &event && on == &stream ? SUCCESS : INVALID_VALUE;
}

static int event_query(void *which)
{
    static int asked;
    const char *late = getenv("STAND_IN_LATE");
    CALLED("cuEventQuery", 1);
    if (which != &event) return INVALID_VALUE;
    return late && asked++ < atoi(late) ? NOT_READY : SUCCESS;
}

static int event_elapsed(float *ms, void *first, void *last)
{
    CALLED("cuEventElapsedTime", 1);
    *ms = 2;
    return first == &event && last == &event ? SUCCESS : INVALID_VALUE;
}

/* Graphs hold three nodes: a kernel, what STAND_IN_NODE says (a kernel, or a call of the host in
   between or at the end), and a kernel. */
static int nodes[3];

static int capture_begin(void *on, int mode)
{
    CALLED("cuStreamBeginCapture", 1);
    return on == &stream && mode == 2 ? SUCCESS : INVALID_VALUE;
}

static int capture_end(void *on, void **to)
{
    CALLED("cuStreamEndCapture", 1);
    *to = &graph;
    return on == &stream ? SUCCESS : INVALID_VALUE;
}

static int graph_nodes(void *of, void **to, size_t *count)
{
    CALLED("cuGraphGetNodes", 0);
    for (size_t i = 0; to && i < *count; i++) to[i] = &nodes[i];
    *count = 3;
    return of == &graph ? SUCCESS : INVALID_VALUE;
}

static int node_type(void *node, int *type)
{
    const char *told = getenv("STAND_IN_NODE");
    CALLED("cuGraphNodeGetType", 0);
    *type = told && node == &nodes[1] ? 3 : 0;
    return SUCCESS;
}

static int node_dependents(void *node, void **to, void *edges, size_t *count)
{
    const char *told = getenv("STAND_IN_NODE");
    CALLED("cuGraphNodeGetDependentNodes", 0);
    (void)node, (void)to, (void)edges;
    *count = told && !strcmp(told, "between");
    return SUCCESS;
}

static int node_destroy(void *node)
{
    CALLED("cuGraphDestroyNode", 0);
    return node == &nodes[1] ? SUCCESS : INVALID_VALUE;
}

static int graph_instantiate(void **to, void *of, unsigned long long flags)
{
    CALLED("cuGraphInstantiate", 1);
    *to = &graph;
    return of == &graph && !flags ? SUCCESS : INVALID_VALUE;
}

static int graph_upload(void *which, void *on)
{
    CALLED("cuGraphUpload", 1);
    return which == &graph && on == &stream ? SUCCESS : INVALID_VALUE;
}

static int graph_launch(void *which, void *on)
{
    CALLED("cuGraphLaunch", 1);
    return which == &graph && on == &stream ? SUCCESS : INVALID_VALUE;
}

static int graph_destroy(void *which)
{
    CALLED("cuGraphDestroy", 1);
    return which == &graph ? SUCCESS : INVALID_VALUE;
}

static int executable_destroy(void *which)
{
    CALLED("cuGraphExecDestroy", 1);
    return which == &graph ? SUCCESS : INVALID_VALUE;
}

static int launch(
    void *which, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
    unsigned threads_z, unsigned shared, void *on, void **p, void **extra)
{
    char line[128];
    snprintf(line, sizeof line, "cuLaunchKernel %u threads, %u bytes shared, stream %llu", threads,
             shared, (unsigned long long)(uintptr_t)on);
    CALLED("cuLaunchKernel", 1);
    called(line, 1);
    if (which == &combine || which == &affine) {
        const uint32_t length = *(uint32_t *)p[4];
        if (on != &stream || threads * x < length || y * z != 1 || shared) return INVALID_VALUE;
        return which == &combine ? launch_combine(p) : launch_affine(p);
    }
    if (which == &pixels || which == &check) {
        const uint32_t length = *(uint32_t *)p[which == &pixels ? 3 : 2];
        if (on != &stream || threads * x < length || y * z != 1 || shared) return INVALID_VALUE;
        return which == &pixels ? launch_pixels(p) : launch_finite(p);
    }
    if (which != &kernel || !(x && y && z) || threads_y != 1 || threads_z != 1 || extra)
        return INVALID_VALUE;

#define POINTER(i) ((char *)(uintptr_t) * (uint64_t *)p[i])
#define INT(i) (*(int32_t *)p[i])
#define FLOAT(i) (*(float *)p[i])
    const int32_t *corners = (int32_t *)POINTER(1), *grid[3] = {p[24], p[25], p[26]};
    const float *mean = (float *)POINTER(2), *inv_std = (float *)POINTER(3);
    float *tokens = (float *)POINTER(4);
    const int32_t cube = INT(42), cubes = INT(43), batch = INT(44);
    if (*(uint64_t *)p[51] || *(uint64_t *)p[52]) return INVALID_VALUE; /* no scratch memory */
    for (int64_t b = 0; b < batch; b++)
        for (int64_t n = 0; n < cubes; n++)
            for (int32_t c = 0; c < cube * cube * cube; c++, tokens++) {
                const int32_t in_cube[3] = {c / (cube * cube), c / cube % cube, c % cube};
                const int64_t element = n * cube * cube * cube + c;
                int64_t at[3][2];
                double weight[3], value = 0;
                int in_grid = 1, inside = 1, g[3];
                for (int a = 0; a < 3; a++) {
                    g[a] = corners[a * cubes + n] + in_cube[a];
                    in_grid &= g[a] >= 0 && g[a] < *grid[a];
                }
                for (int a = 0; a < 3; a++) {
                    int64_t **m = (int64_t **)p + 5 + 4 * a;
                    const int64_t fixed = *m[0] * g[0] + *m[1] * g[1] + *m[2] * g[2] + *m[3];
                    inside &= neighbours((double)fixed * 0x1p-32, INT(21 + a),
                                         *(uint32_t *)p[18 + a], at[a], &weight[a]);
                }
                const char *volume = POINTER(0) + b * *(int64_t *)p[17];
                for (int s = 0; s < 8; s++) {
                    const int side[3] = {s >> 2, s >> 1 & 1, s & 1};
                    double part = *(int16_t *)(volume + at[0][side[0]] + at[1][side[1]] +
                                               at[2][side[2]]);
                    for (int a = 0; a < 3; a++) part *= side[a] ? weight[a] : 1 - weight[a];
                    value += part;
                }
                value = inside ? value * FLOAT(48) + FLOAT(49) : FLOAT(50);
                if (INT(46)) value -= mean[element];
                if (INT(47)) value *= inv_std[element];
                *tokens = in_grid ? (float)value : 0;
            }
    return SUCCESS;
}

static const struct {
    const char *name;
    void *function;
} CALLS[] = {
    {"cuInit", init},
    {"cuGetErrorString", error_string},
    {"cuDeviceGetCount", device_count},
    {"cuDeviceGet", device},
    {"cuDeviceGetAttribute", attribute},
    {"cuDevicePrimaryCtxRetain", retain},
    {"cuDevicePrimaryCtxRelease", release},
    {"cuCtxPushCurrent", push},
    {"cuCtxPopCurrent", pop},
    {"cuCtxSynchronize", synchronize},
    {"cuMemAlloc", allocate},
    {"cuMemFree", release_memory},
    {"cuMemGetInfo", memory_info},
    {"cuMemcpyHtoD", upload},
    {"cuMemcpyDtoH", download},
    {"cuModuleLoadData", load},
    {"cuModuleUnload", unload},
    {"cuModuleGetFunction", function},
    {"cuLaunchKernel", launch},
    {"cuStreamCreate", stream_create},
    {"cuCtxGetStreamPriorityRange", priority_range},
    {"cuStreamCreateWithPriority", stream_create_with_priority},
    {"cuStreamDestroy", stream_destroy},
    {"cuStreamSynchronize", stream_synchronize},
    {"cuStreamBeginCapture", capture_begin},
    {"cuStreamEndCapture", capture_end},
    {"cuMemsetD8Async", set_bytes},
    {"cuMemHostAlloc", host_allocate},
    {"cuMemFreeHost", host_free},
    {"cuMemcpyHtoDAsync", upload_on},
    {"cuMemcpyDtoHAsync", download_on},
    {"cuMemcpyDtoDAsync", copy_on},
    {"cuEventCreate", event_create},
    {"cuEventDestroy", event_destroy},
    {"cuEventRecord", event_record},
    {"cuEventQuery", event_query},
    {"cuEventElapsedTime", event_elapsed},
    {"cuGraphGetNodes", graph_nodes},
    {"cuGraphNodeGetType", node_type},
    {"cuGraphNodeGetDependentNodes", node_dependents},
    {"cuGraphDestroyNode", node_destroy},
    {"cuGraphInstantiateWithFlags", graph_instantiate},
    {"cuGraphUpload", graph_upload},
    {"cuGraphLaunch", graph_launch},
    {"cuGraphDestroy", graph_destroy},
    {"cuGraphExecDestroy", executable_destroy},
};

/* What runtime/engines/driver.py asks for by name, before any library is touched. */
int cuInit(unsigned flags) { return init(flags); }
int cuGetErrorString(int status, const char **text) { return error_string(status, text); }
int cuDeviceGetCount(int *count) { return device_count(count); }
int cuDeviceGet(int *handle, int number) { return device(handle, number); }

int cuDriverGetVersion(int *version)
{
    const char *told = getenv("STAND_IN_CUDA");
    CALLED("cuDriverGetVersion", 0);
    *version = told ? atoi(told) : 13000;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int size, int handle)
{
    CALLED("cuDeviceGetName", 0);
    (void)handle;
    snprintf(name, size, "stand-in");
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int handle)
{
    CALLED("cuDeviceTotalMem_v2", 0);
    (void)handle;
    *bytes = (size_t)8 << 30;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int which, int handle)
{
    if (which != MULTIPROCESSORS) return attribute(value, which, handle);
    *value = 132;
    return SUCCESS;
}

/* The one symbol that cuda-python looks up; all others it asks for here. */
int cuGetProcAddress_v2(
    const char *symbol, void **function, int version, uint64_t flags, int *found)
{
    (void)version, (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++)
        if (!strcmp(CALLS[i].name, symbol)) *function = CALLS[i].function;
    if (found) *found = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
