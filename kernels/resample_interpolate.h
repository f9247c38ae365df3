/* Values of a piece of a cube, in real units: load a box of the volume, interpolate inside it.

   Compiled once for each instruction set (see resample.c). Only the loading meets the volume's type
   and strides; all that follows sees contiguous float32. The last axis of a box is best the
   contiguous one of the volume, and a piece has at most LANES voxels an edge, so that a box stays
   in cache and a row is one or two vectors. */

INLINE float NAME(half_to_float)(uint16_t half)
{
    float value = float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f; /* subnormals come right */
    uint32_t special = value >= 65536.0f ? 0x7f800000u : 0;             /* infinity and NaN */
    return float_of(bits_of(value) | special | (uint32_t)(half & 0x8000) << 16);
}

INLINE float NAME(stored)(const int type, const char *at)
{
    switch (type) {
    case INT16: return (float)*(const any_int16 *)at;
    case UINT16: return (float)*(const any_uint16 *)at;
    case FLOAT16: return NAME(half_to_float)(*(const any_uint16 *)at);
    default: return *(const any_float *)at;
    }
}

/* Eight real values of a row that is contiguous in the volume. */
INLINE void NAME(load8)(const int type, const char *from, float slope, float inter, float *to)
{
#ifdef __F16C__
    if (type == FLOAT16) {
        const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
        const __m256 factor = _mm256_set1_ps(slope), shift = _mm256_set1_ps(inter);
        _mm256_storeu_ps(to, _mm256_fmadd_ps(eight, factor, shift));
        return;
    }
#endif
    vec8 values;
    short8 stored;
    ushort8 positive;
    switch (type) {
    case INT16:
        memcpy(&stored, from, sizeof stored);
        values = __builtin_convertvector(stored, vec8);
        break;
    case UINT16:
        memcpy(&positive, from, sizeof positive);
        values = __builtin_convertvector(positive, vec8);
        break;
    case FLOAT16:
        for (int i = 0; i < 8; i++) values[i] = NAME(stored)(FLOAT16, from + 2 * i);
        break;
    default: memcpy(&values, from, sizeof values);
    }
    values = values * slope + inter;
    memcpy(to, &values, sizeof values);
}

INLINE void NAME(load_row)(
    const int type, const char *from, int64_t step, int64_t n, float slope, float inter, float *to)
{
    const int item = ITEM_SIZE(type);
    if (step != item || n < 8) {
        for (int64_t i = 0; i < n; i++)
            to[i] = NAME(stored)(type, from + i * step) * slope + inter;
        return;
    }
    for (int64_t i = 0; i < n - 8; i += 8)
        NAME(load8)(type, from + i * item, slope, inter, to + i);
    NAME(load8)(type, from + (n - 8) * item, slope, inter, to + n - 8); /* may overlap */
}

/* Real values of a box, (count[0], count[1], pitch); beyond the volume's faces the edge repeats. */
INLINE void NAME(load_box)(const Volume *v, const int type, const Box *box, float *block)
{
    const int64_t wanted = box->count[2];
    const int64_t first = clamp(box->start[2], 0, v->size[2] - 1);
    const int64_t last = clamp(box->start[2] + wanted - 1, 0, v->size[2] - 1);
    const int64_t lead = clamp(first - box->start[2], 0, wanted - 1), n = last - first + 1;
    for (int64_t i = 0; i < box->count[0]; i++) {
        const char *plane = v->data + clamp(box->start[0] + i, 0, v->size[0] - 1) * v->stride[0];
        for (int64_t j = 0; j < box->count[1]; j++, block += box->pitch) {
            const char *row = plane + clamp(box->start[1] + j, 0, v->size[1] - 1) * v->stride[1];
            row += first * v->stride[2];
            NAME(load_row)(type, row, v->stride[2], n, v->slope, v->inter, block + lead);
            for (int64_t k = 0; k < lead; k++) block[k] = block[lead];
            for (int64_t k = lead + n; k < box->pitch; k++) block[k] = block[lead + n - 1];
        }
    }
}

static void NAME(load)(const Volume *v, const Box *box, float *block)
{
    switch (v->type) { /* the type is constant inside each case, so the loops hold no choice */
    case INT16: NAME(load_box)(v, INT16, box, block); break;
    case UINT16: NAME(load_box)(v, UINT16, box, block); break;
    case FLOAT16: NAME(load_box)(v, FLOAT16, box, block); break;
    default: NAME(load_box)(v, FLOAT32, box, block);
    }
}

INLINE void NAME(blend)(
    int64_t n, float weight, const float *low, const float *high, float *restrict to)
{
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t l = 0; l < LANES; l++) to[i + l] = LERP(weight, low[i + l], high[i + l]);
}

/* Four rows of four into four columns of four. */
INLINE void NAME(turn4)(vec4 row[4])
{
    vec4 a = SHUFFLE(row[0], row[1], 0, 4, 1, 5), b = SHUFFLE(row[0], row[1], 2, 6, 3, 7);
    vec4 c = SHUFFLE(row[2], row[3], 0, 4, 1, 5), d = SHUFFLE(row[2], row[3], 2, 6, 3, 7);
    row[0] = SHUFFLE(a, c, 0, 1, 4, 5), row[1] = SHUFFLE(a, c, 2, 3, 6, 7);
    row[2] = SHUFFLE(b, d, 0, 1, 4, 5), row[3] = SHUFFLE(b, d, 2, 3, 6, 7);
}

/* (LANES, pitch) into (pitch, LANES). */
INLINE void NAME(turn)(int64_t pitch, const float *from, float *to)
{
    for (int64_t i = 0; i < LANES; i += 4)
        for (int64_t j = 0; j < pitch; j += 4) {
            vec4 row[4];
            for (int r = 0; r < 4; r++) memcpy(row + r, from + (i + r) * pitch + j, 16);
            NAME(turn4)(row);
            for (int r = 0; r < 4; r++) memcpy(to + (j + r) * LANES + i, row + r, 16);
        }
}

/* The piece's values into work->tile, (n[0], n[1], n[2]). The box holds the axes in the order
   2, 1, 0: its rows run along axis 0, so axes 2 and 1 are done on them, and axis 0 once they are
   turned to run along axis 2 as the tokens do. */
static void NAME(resize)(const Job *job, const Piece *p, const Box *box, Work *work)
{
    const int64_t plane = box->count[1] * box->pitch, pitch = box->pitch;
    const int32_t *x = job->low[0] + p->first[0], *y = job->low[1] + p->first[1];
    const int32_t *z = job->low[2] + p->first[2];
    for (int k = 0; k < p->n[2]; k++) {
        const float *low = work->block + (z[k] - box->start[0]) * plane;
        const float *high = low + job->step[2] * plane;
        NAME(blend)(plane, job->weight[2][p->first[2] + k], low, high, work->planes + k * plane);
    }
    for (int j = 0; j < p->n[1]; j++) {
        const float *low = work->planes + (y[j] - box->start[1]) * pitch;
        for (int k = 0; k < p->n[2]; k++, low += plane)
            NAME(blend)(pitch, job->weight[1][p->first[1] + j], low, low + job->step[1] * pitch,
                        work->rows + k * pitch);
        NAME(turn)(pitch, work->rows, work->turned + j * pitch * LANES);
    }
    float *to = work->tile;
    for (int i = 0; i < p->n[0]; i++)
        for (int j = 0; j < p->n[1]; j++, to += p->n[2]) { /* the next row covers spare lanes */
            const float *low = work->turned + (j * pitch + x[i] - box->start[2]) * LANES;
            const float *high = low + job->step[0] * LANES;
            NAME(blend)(LANES, job->weight[0][p->first[0] + i], low, high, to);
        }
}

/* Four values of the box at `at`, each from its eight neighbours; weights are those of the upper
   ones. Two neighbours on a row are loaded together; turning then makes vectors over points. */
INLINE vec4 NAME(gather4)(
    const float *block, int64_t plane, int64_t pitch, const int32_t *at, const float *weight[3])
{
    vec4 side[4], w[3];
    for (int k = 0; k < 4; k++) {
        const float *near = block + at[k], *far = near + plane;
        side[k] = LERP(weight[0][k], two_pairs(near, near + pitch), two_pairs(far, far + pitch));
    }
    for (int a = 1; a < 3; a++) memcpy(w + a, weight[a], 16);
    NAME(turn4)(side);
    return LERP(w[2], LERP(w[1], side[0], side[2]), LERP(w[1], side[1], side[3]));
}

/* Positions of a plane of points, one row of the piece after the other: where in the box the lowest
   neighbour of each lies, and the weights of the upper ones. Positions are fixed-point with 24
   binary places: a shift gives the neighbour, the remainder its weight. At the end of a row of 16
   they are off by at most 5e-7 of a voxel. */
INLINE void NAME(place_plane)(const Job *job, const Piece *p, const Box *box, int i, Work *work)
{
    const double *m = job->matrix;
    const int32_t pitch = (int32_t)box->pitch, plane = (int32_t)box->count[1] * pitch;
    const int32_t last = p->n[2] - 1;
    double start[3];
    int32_t step[3], *at = work->at;
    for (int a = 0; a < 3; a++, m += 4) {
        start[a] = m[0] * (p->first[0] + i) + m[2] * p->first[2] + m[3] - (double)box->start[a];
        step[a] = to_fixed(m[2]);
    }
    m = job->matrix + 1;
    for (int j = 0; j < p->n[1]; j++, at += p->n[2]) { /* the next row covers spare lanes */
        const int64_t done = at - work->at;
        int32_t base[3];
        for (int a = 0; a < 3; a++) base[a] = to_fixed(start[a] + m[4 * a] * (p->first[1] + j));
        for (int32_t k = 0; k < LANES; k++) {
            const int32_t along = k < last ? k : last;
            int32_t q[3];
            for (int a = 0; a < 3; a++) {
                q[a] = base[a] + along * step[a];
                work->weight[a][done + k] = (float)(q[a] & (FIXED_ONE - 1)) * (1.0f / FIXED_ONE);
                q[a] >>= FIXED_PLACES;
            }
            at[k] = q[0] * plane + q[1] * pitch + q[2];
        }
    }
    for (int k = 0; k < 4; k++) at[k] = work->at[0]; /* a last group of four may be half empty */
}

INLINE int NAME(is_outside)(const Job *job, const Volume *v, int32_t x, int32_t y, int32_t z)
{
    const double *m = job->matrix;
    int outside = 0;
    for (int a = 0; a < 3; a++, m += 4) {
        const double q = m[0] * x + m[1] * y + m[2] * z + m[3];
        outside |= !(q >= -REACH && q <= (double)(v->size[a] - 1) + REACH);
    }
    return outside;
}

/* `fill` in those elements of a plane whose point lies more than half a voxel outside. A row is a
   straight line, so if both of its ends lie inside, all of it does. */
INLINE void NAME(fill_outside)(
    const Job *job, const Volume *v, const Piece *p, int i, float *row)
{
    const int32_t x = p->first[0] + i, z = p->first[2], n = p->n[2];
    for (int32_t y = p->first[1]; y < p->first[1] + p->n[1]; y++, row += n) {
        const int first = NAME(is_outside)(job, v, x, y, z);
        if (!first && !NAME(is_outside)(job, v, x, y, z + n - 1)) continue;
        for (int k = 0; k < n; k++)
            if (NAME(is_outside)(job, v, x, y, z + k)) row[k] = job->fill;
    }
}

/* Plane i of the piece's values into work->tile, after those before it. */
static void NAME(transform_plane)(
    const Job *job, const Volume *v, const Piece *p, const Box *box, int edge, int i, Work *work)
{
    const int64_t plane = box->count[1] * box->pitch, n = (int64_t)p->n[1] * p->n[2];
    float *to = work->tile + i * n;
    NAME(place_plane)(job, p, box, i, work);
    for (int64_t k = 0; k < n; k += 4) {
        const float *w[3] = {work->weight[0] + k, work->weight[1] + k, work->weight[2] + k};
        vec4 values = NAME(gather4)(work->block, plane, box->pitch, work->at + k, w);
        memcpy(to + k, &values, 16);
    }
    if (edge) NAME(fill_outside)(job, v, p, i, to);
}

/* Value at a point in voxels, and its gradient in real units a voxel if asked for; `fill`, and a
   gradient of 0, where the point lies more than half a voxel outside. */
INLINE float NAME(sample)(
    const Volume *v, const int type, const double point[3], float fill, float *gradient)
{
    float w[3], u[3], corner[8], free[3];
    const char *at = v->data;
    int64_t step[3];
    if (gradient) gradient[0] = gradient[1] = gradient[2] = 0;
    for (int a = 0; a < 3; a++) {
        const double last = (double)(v->size[a] - 1), q = point[a];
        if (!(q >= -REACH && q <= last + REACH)) return fill;
        const double inside = q < 0 ? 0 : q > last ? last : q;
        int64_t low = (int64_t)inside;
        low -= low == v->size[a] - 1 && low > 0;
        w[a] = (float)(inside - (double)low), u[a] = 1 - w[a];
        free[a] = inside == q ? 1.0f : 0.0f;
        at += low * v->stride[a];
        step[a] = v->size[a] > 1 ? v->stride[a] : 0;
    }
    for (int c = 0; c < 8; c++)
        corner[c] = NAME(stored)(
            type, at + (c >> 2) * step[0] + (c >> 1 & 1) * step[1] + (c & 1) * step[2]);
    float edge[4], face[2];
    for (int c = 0; c < 4; c++) edge[c] = u[2] * corner[2 * c] + w[2] * corner[2 * c + 1];
    for (int c = 0; c < 2; c++) face[c] = u[1] * edge[2 * c] + w[1] * edge[2 * c + 1];
    if (gradient) {
        float rise[4];
        for (int c = 0; c < 4; c++) rise[c] = corner[2 * c + 1] - corner[2 * c];
        gradient[0] = free[0] * v->slope * (face[1] - face[0]);
        gradient[1] = free[1] * v->slope *
                      (u[0] * (edge[1] - edge[0]) + w[0] * (edge[3] - edge[2]));
        gradient[2] = free[2] * v->slope * (u[0] * (u[1] * rise[0] + w[1] * rise[1]) +
                                            w[0] * (u[1] * rise[2] + w[1] * rise[3]));
    }
    return (u[0] * face[0] + w[0] * face[1]) * v->slope + v->inter;
}
