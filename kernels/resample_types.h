/* Words of the native code: volumes, boxes, pieces, jobs, and a few small operations. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { INT16, UINT16, FLOAT16, FLOAT32, BFLOAT16 };
#define ITEM_SIZE(type) ((type) == FLOAT32 ? 4 : 2)
enum { INSIDE, EDGE, OUTSIDE };
enum {
    LANES = 16,           /* float32 in a row of a piece */
    LINE = 16,            /* float32 in a line of the cache */
    BLOCK = 16384,        /* float32 in a box, or in a stage between two passes */
    WIDEST = 64,          /* row of a box that is turned */
    LONGEST = 100,        /* voxels an edge of a box, so that positions fit fixed-point */
    LARGE = 1 << 20,      /* more than any box may have */
    SMALL = 3,            /* cubes up to here are sampled point by point */
    POINTS_SHARE = 1024,
    FIXED_PLACES = 24,
    FIXED_ONE = 1 << FIXED_PLACES,
};
#define REACH (0.5 + 0x1p-16) /* voxels that the edge reaches outwards, as in the reference */
#define MARGIN 0x1p-20 /* voxels; above what rounding does to a position in a box */

/* Elements of a NumPy array need not be aligned. */
typedef int16_t __attribute__((aligned(1), may_alias)) any_int16;
typedef uint16_t __attribute__((aligned(1), may_alias)) any_uint16;
typedef float __attribute__((aligned(1), may_alias)) any_float;
typedef int16_t short8 __attribute__((vector_size(16)));
typedef uint16_t ushort8 __attribute__((vector_size(16)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));

typedef struct {
    const char *data;
    int type;
    int64_t size[3], stride[3]; /* voxels, bytes */
    float slope, inter;
} Volume;

/* Part of a volume, which may reach beyond its faces; rows lie `pitch` apart once loaded. */
typedef struct {
    int64_t start[3], count[3], pitch;
} Box;

/* Part of a cube: its first voxel in the cube and in the grid, and its size. */
typedef struct {
    int32_t at[3], first[3], n[3];
} Piece;

/* The stages of a piece: box, two axes done, rows turned, values; positions of a plane. */
typedef struct {
    float block[BLOCK], planes[BLOCK], turned[BLOCK], rows[LANES * WIDEST];
    float tile[LANES * LANES * LANES + LANES];
    int32_t at[LANES * LANES + LANES];
    float weight[3][LANES * LANES + LANES];
} Work;

typedef struct {
    Volume volume; /* of the first in the batch */
    int64_t batch, batch_stride, cubes, share, volume_of_cube;
    const int32_t *corner; /* (cubes, 3) grid voxel of each cube's first element */
    int32_t cube, grid[3];
    const double *matrix; /* (3, 4) grid voxel to voxel of the volume as it is passed */
    int separable, any_outside, step[3];
    const int32_t *low[3];      /* separable: lower neighbour of each grid voxel on each axis, */
    const float *weight[3];     /* weight of the upper one, */
    const uint8_t *outside[3];  /* and whether it lies outside the volume */
    const float *mean, *inv_std; /* (cubes, cube^3) or NULL */
    float fill;
    char *out;
    int out_type, out_size;
} Job;

typedef struct {
    Volume volume;
    const double *points;
    int64_t count;
    float fill, *out, *gradient;
} Points;

/* Two fused multiply-adds; no difference that could overflow. */
#define LERP(weight, low, high) ((low) - (weight) * (low) + (weight) * (high))

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t clamp(int64_t a, int64_t least, int64_t most) { return min(max(a, least), most); }
INLINE int32_t to_fixed(double a) { return (int32_t)lrint(a * FIXED_ONE); }

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

#ifdef __clang__
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (int4){i, j, k, l})
#endif

/* The first two of `a` and the first two of `b`. Whole vectors are loaded and blended, which any
   port does; a load into half a register needs the one port that the shuffles wait for. */
INLINE vec4 two_pairs(const float *a, const float *b)
{
    vec4 low, high;
    memcpy(&low, a, 16);
    memcpy(&high, b - 2, 16);
    return SHUFFLE(low, high, 0, 1, 6, 7);
}
