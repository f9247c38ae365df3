/* Native half of `scanside.kernels`: from a volume to tokens, and samples at single points.

   This file holds the choice of instruction set, the threads and the Python face; what is computed
   stands in resample_interpolate.h and resample_cubes.h, which are compiled here once for each
   instruction set. Nothing is allocated in a call, and the GIL is released while it works.
   `native.py` prepares and checks the arguments; what could leave
   their memory is checked here. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MANY_SETS 1
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "resample_types.h"

#define NAME(function) function##_portable
#include "resample_interpolate.h"
#include "resample_cubes.h"
#undef NAME

#ifdef MANY_SETS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define NAME(function) function##_avx2
#include "resample_interpolate.h"
#include "resample_cubes.h"
#undef NAME
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define NAME(function) function##_avx512
#include "resample_interpolate.h"
#include "resample_cubes.h"
#undef NAME
#pragma GCC pop_options
#endif

static const struct {
    const char *name;
    void (*cubes)(const Job *, int64_t);
    void (*points)(const Points *, int64_t);
} SETS[] = {
    {"portable", cubes_portable, points_portable},
#ifdef MANY_SETS
    {"avx2", cubes_avx2, points_avx2},
    {"avx512", cubes_avx512, points_avx512},
#endif
};

#ifdef MANY_SETS
/* Conversion of halves is a set of its own, which a virtual machine may lack; older compilers do
   not know it by name. */
static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static int best_set(void)
{
#ifdef MANY_SETS
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return 1;
#else
    return 0;
#endif
}

static void make_tokens(const Job *job, int set, int threads)
{
    const int64_t shares = job->batch * ((job->cubes + job->share - 1) / job->share);
    void (*cubes)(const Job *, int64_t) = SETS[set].cubes;
    (void)threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t share = 0; share < shares; share++) cubes(job, share);
}

static void sample_points(const Points *job, int set, int threads)
{
    const int64_t shares = (job->count + POINTS_SHARE - 1) / POINTS_SHARE;
    void (*points)(const Points *, int64_t) = SETS[set].points;
    (void)threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t share = 0; share < shares; share++) points(job, share);
}

/* Ends idle threads, which would else spin for milliseconds beside whatever runs next. */
static void rest(int threads)
{
#ifdef _OPENMP
    if (threads > 1) omp_pause_resource(omp_pause_soft, omp_get_initial_device());
#else
    (void)threads;
#endif
}

enum { MOST_BUFFERS = 9 };
typedef struct {
    Py_buffer view[MOST_BUFFERS];
    int count;
} Buffers;

static int failed(const char *sentence)
{
    PyErr_SetString(PyExc_ValueError, sentence);
    return -1;
}

static void release(Buffers *buffers)
{
    while (buffers->count) PyBuffer_Release(&buffers->view[--buffers->count]);
}

/* Borrow contiguous memory of exactly `bytes`; None is NULL where that is allowed. */
static int borrow(Buffers *b, PyObject *from, int flags, int64_t bytes, const char *name, void *to)
{
    if (from == Py_None) {
        memset(to, 0, sizeof(void *));
        return 0;
    }
    Py_buffer *view = &b->view[b->count];
    if (PyObject_GetBuffer(from, view, flags) < 0) return -1;
    b->count++;
    memcpy(to, &view->buf, sizeof(void *));
    if (view->len == bytes) return 0;
    PyErr_Format(PyExc_ValueError, "'%s' must have %lld bytes; got %lld", name, (long long)bytes,
                 (long long)view->len);
    return -1;
}

/* The last three axes of a buffer as a volume. */
static int borrow_volume(Buffers *b, PyObject *from, int dimensions, Volume *v)
{
    Py_buffer *view = &b->view[b->count];
    if (PyObject_GetBuffer(from, view, PyBUF_STRIDES) < 0) return -1;
    b->count++;
    if (v->type < INT16 || v->type > FLOAT32) return failed("unknown type of volume");
    if (view->ndim != dimensions || view->itemsize != ITEM_SIZE(v->type))
        return failed("'volume' has other axes or items than its type says");
    for (int a = 0; a < 3; a++) {
        v->size[a] = view->shape[dimensions - 3 + a];
        v->stride[a] = view->strides[dimensions - 3 + a];
        if (v->size[a] < 1 || v->size[a] > INT32_MAX) return failed("'volume' has an empty axis");
    }
    v->data = view->buf;
    return 0;
}

/* A table leads nowhere but into the volume, and only forwards or only backwards. */
static int check_tables(const Job *job)
{
    for (int a = 0; a < 3; a++) {
        int up = 0, down = 0;
        for (int32_t i = 0; i < job->grid[a]; i++) {
            const int32_t low = job->low[a][i];
            if (low < 0 || low + job->step[a] >= job->volume.size[2 - a])
                return failed("'low' leads out of the volume");
            up |= i && low > job->low[a][i - 1];
            down |= i && low < job->low[a][i - 1];
        }
        if (up && down) return failed("'low' must rise or fall");
    }
    return 0;
}

static int borrow_tables(
    Buffers *b, PyObject *low, PyObject *weight, PyObject *outside, Job *job)
{
    const int64_t total = (int64_t)job->grid[0] + job->grid[1] + job->grid[2];
    job->separable = low != Py_None;
    if (!job->separable) return 0;
    if (borrow(b, low, PyBUF_SIMPLE, 4 * total, "low", &job->low[0]) < 0 ||
        borrow(b, weight, PyBUF_SIMPLE, 4 * total, "weight", &job->weight[0]) < 0 ||
        borrow(b, outside, PyBUF_SIMPLE, total, "outside", &job->outside[0]) < 0)
        return -1;
    if (!job->weight[0] || !job->outside[0]) return failed("a resize needs all of its tables");
    for (int a = 0; a < 3; a++) {
        job->step[a] = job->volume.size[2 - a] > 1;
        if (a < 2) {
            job->low[a + 1] = job->low[a] + job->grid[a];
            job->weight[a + 1] = job->weight[a] + job->grid[a];
            job->outside[a + 1] = job->outside[a] + job->grid[a];
        }
        for (int32_t i = 0; i < job->grid[a]; i++) job->any_outside |= job->outside[a][i];
    }
    return check_tables(job);
}

static int check_set(int set, int threads)
{
    if (set < 0 || set > best_set()) return failed("this CPU lacks the instruction set");
    if (threads < 1 || threads > 1024) return failed("'threads' must be 1 to 1024");
    return 0;
}

static PyObject *tokens(PyObject *module, PyObject *args)
{
    PyObject *volume, *out, *corner, *matrix, *low, *weight, *outside, *mean, *inv_std;
    Buffers buffers = {0};
    Job job = {0};
    int set, threads, done = -1;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiffOiOi(iii)OOOOOOfii", &volume, &job.volume.type,
                          &job.volume.slope, &job.volume.inter, &out, &job.out_type, &corner,
                          &job.cube, &job.grid[0], &job.grid[1], &job.grid[2], &matrix, &low,
                          &weight, &outside, &mean, &inv_std, &job.fill, &threads, &set))
        return NULL;
    if (check_set(set, threads) < 0) goto end;
    if (borrow_volume(&buffers, volume, 4, &job.volume) < 0) goto end;
    job.batch = buffers.view[0].shape[0], job.batch_stride = buffers.view[0].strides[0];
    if (job.cube < 1 || job.cube > 1024 || min(job.grid[0], min(job.grid[1], job.grid[2])) < 1) {
        failed("'cube' must be 1 to 1024, and 'grid' three sizes of at least 1");
        goto end;
    }
    if (job.out_type < FLOAT16 || job.out_type > BFLOAT16) {
        failed("unknown type of tokens");
        goto end;
    }
    job.out_size = ITEM_SIZE(job.out_type);
    job.volume_of_cube = (int64_t)job.cube * job.cube * job.cube;
    job.share = job.cube > SMALL ? 4 : LANES * LANES * LANES / job.volume_of_cube;
    Py_ssize_t rows = PyObject_Size(corner);
    if (rows < 0) goto end;
    job.cubes = rows;
    const int64_t values = job.cubes * job.volume_of_cube;
    if (borrow(&buffers, corner, PyBUF_SIMPLE, 12 * job.cubes, "corner", &job.corner) < 0 ||
        borrow(&buffers, matrix, PyBUF_SIMPLE, 96, "matrix", &job.matrix) < 0 ||
        borrow(&buffers, mean, PyBUF_SIMPLE, 4 * values, "mean", &job.mean) < 0 ||
        borrow(&buffers, inv_std, PyBUF_SIMPLE, 4 * values, "inv_std", &job.inv_std) < 0 ||
        borrow(&buffers, out, PyBUF_WRITABLE, job.batch * values * job.out_size, "out", &job.out) ||
        borrow_tables(&buffers, low, weight, outside, &job) < 0)
        goto end;
    if (!job.corner || !job.matrix || !job.out) {
        failed("'corner', 'matrix' and 'out' are needed");
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    make_tokens(&job, set, threads);
    rest(threads);
    Py_END_ALLOW_THREADS
    done = 0;
end:
    release(&buffers);
    return done ? NULL : Py_NewRef(Py_None);
}

static PyObject *points(PyObject *module, PyObject *args)
{
    PyObject *volume, *at, *out, *gradient;
    Buffers buffers = {0};
    Points job = {0};
    int set, threads, done = -1;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiffOOOfii", &volume, &job.volume.type, &job.volume.slope,
                          &job.volume.inter, &at, &out, &gradient, &job.fill, &threads, &set))
        return NULL;
    if (check_set(set, threads) < 0) goto end;
    if (borrow_volume(&buffers, volume, 3, &job.volume) < 0) goto end;
    Py_ssize_t rows = PyObject_Size(at);
    if (rows < 0) goto end;
    job.count = rows;
    if (borrow(&buffers, at, PyBUF_SIMPLE, 24 * job.count, "points", &job.points) < 0 ||
        borrow(&buffers, out, PyBUF_WRITABLE, 4 * job.count, "out", &job.out) < 0 ||
        borrow(&buffers, gradient, PyBUF_WRITABLE, 12 * job.count, "gradient", &job.gradient) < 0)
        goto end;
    if (!job.points || !job.out) {
        failed("'points' and 'out' are needed");
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    sample_points(&job, set, threads);
    rest(threads);
    Py_END_ALLOW_THREADS
    done = 0;
end:
    release(&buffers);
    return done ? NULL : Py_NewRef(Py_None);
}

static PyObject *instruction_sets(PyObject *module, PyObject *args)
{
    (void)module, (void)args;
    PyObject *names = PyTuple_New(best_set() + 1);
    for (int set = 0; names && set <= best_set(); set++)
        PyTuple_SetItem(names, set, PyUnicode_FromString(SETS[set].name));
    return names;
}

static PyMethodDef methods[] = {
    {"tokens", tokens, METH_VARARGS, "Fill `out` with the tokens of a batch of volumes."},
    {"points", points, METH_VARARGS, "Fill `out` with samples of a volume at points."},
    {"instruction_sets", instruction_sets, METH_NOARGS, "Names; this CPU prefers the last."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Native code of scanside.kernels; `native.py` is its face.",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
