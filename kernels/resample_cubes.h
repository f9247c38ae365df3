/* Tokens from values: cut a cube into pieces whose box stays in cache, normalise, cast, write.

   Compiled once for each instruction set, after resample_interpolate.h (see resample.c). */

/* Round to nearest, ties to even; selects instead of branches, so that loops become vectors. */
INLINE uint16_t NAME(float_to_half)(float value)
{
    uint32_t sign = bits_of(value) >> 16 & 0x8000, size = bits_of(value) & 0x7fffffff;
    uint32_t normal = (size - 0x38000000u + 0xfff + (size >> 13 & 1)) >> 13;
    uint32_t small = bits_of(float_of(size) + 0.5f) - 0x3f000000u; /* 0.5 ends where halves do */
    uint32_t large = size > 0x7f800000u ? 0x7e00 : 0x7c00;
    uint32_t half = size < 0x38800000u ? small : normal;
    return (uint16_t)(sign | (size >= 0x47800000u ? large : half));
}

INLINE uint16_t NAME(float_to_bfloat)(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000u ? bits >> 16 | 0x40 : rounded);
}

INLINE void NAME(normalise)(
    int64_t n, const float *from, const float *mean, const float *inv_std, float *restrict to)
{
    if (mean && inv_std)
        for (int64_t i = 0; i < n; i++)
            to[i] = inv_std[i] > 0 ? (from[i] - mean[i]) * inv_std[i] : 0;
    else if (inv_std)
        for (int64_t i = 0; i < n; i++) to[i] = inv_std[i] > 0 ? from[i] * inv_std[i] : 0;
    else if (mean)
        for (int64_t i = 0; i < n; i++) to[i] = from[i] - mean[i];
    else
        memcpy(to, from, sizeof(float) * (size_t)n);
}

INLINE void NAME(to_halves)(int64_t n, const float *from, uint16_t *restrict to)
{
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < n; i++) to[i] = NAME(float_to_half)(from[i]);
}

/* Write n values that are neighbours in the tokens of volume b, `element` the first of them. */
static void NAME(write)(const Job *job, int64_t b, int64_t element, int64_t n, const float *values)
{
    const float *mean = job->mean ? job->mean + element : NULL;
    const float *inv_std = job->inv_std ? job->inv_std + element : NULL;
    char *out = job->out + (b * job->cubes * job->volume_of_cube + element) * job->out_size;
    if (job->out_type == FLOAT32) {
        NAME(normalise)(n, values, mean, inv_std, (float *)out);
        return;
    }
    float part[256];
    for (int64_t i = 0; i < n; i += 256) {
        const int64_t m = min(n - i, 256);
        uint16_t *to = (uint16_t *)out + i;
        NAME(normalise)(m, values + i, mean ? mean + i : NULL, inv_std ? inv_std + i : NULL, part);
        if (job->out_type == FLOAT16)
            NAME(to_halves)(m, part, to);
        else
            for (int64_t k = 0; k < m; k++) to[k] = NAME(float_to_bfloat)(part[k]);
    }
}

/* Move the box's rows so that they load in whole vectors, where the volume is wide enough. */
INLINE void NAME(widen)(const Volume *v, int64_t vector, Box *box)
{
    const int64_t start = box->start[2], end = start + box->count[2];
    box->pitch = (box->count[2] + vector - 1) / vector * vector;
    if (start >= 0 && end <= v->size[2] && box->pitch <= v->size[2]) {
        box->start[2] = min(start, v->size[2] - box->pitch);
        box->count[2] = box->pitch;
    }
}

/* Source box of a resize; its axis 0 belongs to grid axis 2, and the reverse. */
INLINE void NAME(resize_box)(const Job *job, const Volume *v, const Piece *p, Box *box)
{
    for (int a = 0; a < 3; a++) {
        const int32_t *low = job->low[a] + p->first[a];
        const int32_t one = low[0], other = low[p->n[a] - 1]; /* the table is monotonic */
        box->start[2 - a] = min(one, other);
        box->count[2 - a] = max(one, other) + job->step[a] + 1 - box->start[2 - a];
    }
    NAME(widen)(v, LANES, box);
}

/* Source box of an affine; returns whether some of the points, or all, may lie outside. */
INLINE int NAME(affine_box)(const Job *job, const Volume *v, const Piece *p, Box *box)
{
    int where = INSIDE;
    for (int a = 0; a < 3; a++) {
        const double *m = job->matrix + 4 * a, face = (double)(v->size[a] - 1) + REACH;
        double least = m[3], most;
        for (int b = 0; b < 3; b++) least += m[b] * p->first[b];
        most = least;
        for (int b = 0; b < 3; b++) *(m[b] < 0 ? &least : &most) += m[b] * (p->n[b] - 1);
        least -= MARGIN, most += MARGIN;
        if (most < -REACH || least > face) return OUTSIDE;
        if (least < -REACH || most > face) where = EDGE;
        if (most - least > LONGEST) {
            box->start[a] = -1, box->count[a] = LARGE;
        } else {
            box->start[a] = (int64_t)floor(least);
            box->count[a] = (int64_t)floor(most) + 2 - box->start[a];
        }
    }
    NAME(widen)(v, LANES / 2, box);
    return where;
}

INLINE int NAME(fits)(const Job *job, const Piece *p, const Box *box)
{
    const int64_t *n = box->count, row = n[1] * box->pitch;
    if (max(n[0], max(n[1], n[2])) >= LARGE || n[0] * row > BLOCK) return 0;
    return !job->separable || (box->pitch <= WIDEST && p->n[2] * row <= BLOCK);
}

INLINE void NAME(write_piece)(
    const Job *job, int64_t b, int64_t cube, const Piece *p, const float *tile)
{
    const int64_t r = job->cube, first = cube * r * r * r;
    const int rows_join = p->n[2] == r, planes_join = rows_join && p->n[1] == r;
    const int64_t run = p->n[2] * (rows_join ? p->n[1] : 1) * (planes_join ? p->n[0] : 1);
    for (int i = 0; i < (planes_join ? 1 : p->n[0]); i++)
        for (int j = 0; j < (rows_join ? 1 : p->n[1]); j++, tile += run) {
            int64_t at = ((p->at[0] + i) * r + p->at[1] + j) * r + p->at[2];
            NAME(write)(job, b, first + at, run, tile);
        }
}

/* Ask memory for what writing plane i of a piece will read and overwrite, so that it comes while
   the plane is computed. */
INLINE void NAME(fetch_plane)(const Job *job, int64_t b, int64_t cube, const Piece *p, int i)
{
    const int64_t r = job->cube, first = cube * r * r * r;
    const int64_t from = first + ((p->at[0] + i) * r + p->at[1]) * r + p->at[2];
    const int64_t to = from + (p->n[1] - 1) * r + p->n[2];
    const char *out = job->out + b * job->cubes * job->volume_of_cube * job->out_size;
    for (int64_t k = from; k < to; k += LINE) {
        if (job->mean) __builtin_prefetch(job->mean + k);
        if (job->inv_std) __builtin_prefetch(job->inv_std + k);
        __builtin_prefetch(out + k * job->out_size, 1);
    }
}

/* `fill` in the elements of a resized piece that lie outside along any axis. */
INLINE void NAME(fill_outside_axes)(const Job *job, const Piece *p, float *tile)
{
    const uint8_t *x = job->outside[0] + p->first[0], *y = job->outside[1] + p->first[1];
    const uint8_t *z = job->outside[2] + p->first[2];
    for (int i = 0; i < p->n[0]; i++)
        for (int j = 0; j < p->n[1]; j++, tile += p->n[2])
            for (int k = 0; k < p->n[2]; k++)
                if (x[i] | y[j] | z[k]) tile[k] = job->fill;
}

/* The two halves of a piece along the axis whose halving helps most. */
INLINE void NAME(halve)(const Job *job, const Box *box, Piece *p, Piece *q)
{
    int64_t longest = -1;
    int axis = 0;
    for (int a = 0; a < 3; a++) {
        int64_t length = job->separable ? box->count[2 - a] : p->n[a];
        if (p->n[a] > LANES) length = LARGE + p->n[a];
        if (p->n[a] > 1 && length > longest) axis = a, longest = length;
    }
    *q = *p;
    p->n[axis] /= 2;
    q->n[axis] -= p->n[axis];
    q->at[axis] += p->n[axis];
    q->first[axis] += p->n[axis];
}

static void NAME(piece)(
    const Job *job, const Volume *v, int64_t b, int64_t cube, Piece p, Work *work)
{
    Box box;
    int where = INSIDE;
    if (job->separable) NAME(resize_box)(job, v, &p, &box);
    else where = NAME(affine_box)(job, v, &p, &box);
    if (max(p.n[0], max(p.n[1], p.n[2])) > LANES ||
        (where != OUTSIDE && !NAME(fits)(job, &p, &box))) {
        Piece q;
        NAME(halve)(job, &box, &p, &q);
        NAME(piece)(job, v, b, cube, p, work);
        NAME(piece)(job, v, b, cube, q, work);
        return;
    }
    if (where == OUTSIDE) {
        for (int i = 0; i < p.n[0] * p.n[1] * p.n[2]; i++) work->tile[i] = job->fill;
    } else {
        NAME(load)(v, &box, work->block);
        if (job->separable) NAME(resize)(job, &p, &box, work);
        else
            for (int i = 0; i < p.n[0]; i++) {
                NAME(fetch_plane)(job, b, cube, &p, i);
                NAME(transform_plane)(job, v, &p, &box, where == EDGE, i, work);
            }
        if (job->separable && job->any_outside) NAME(fill_outside_axes)(job, &p, work->tile);
    }
    NAME(write_piece)(job, b, cube, &p, work->tile);
}

/* Cubes of a few voxels: the points one by one, the cubes written together. */
INLINE void NAME(small_cubes)(
    const Job *job, const Volume *v, const int type, int64_t b, int64_t from, int64_t to,
    Work *work)
{
    const double *m = job->matrix;
    const int32_t r = job->cube;
    float *value = work->tile;
    for (int64_t cube = from; cube < to; cube++)
        for (int32_t c = 0; c < r * r * r; c++) {
            const int32_t in_cube[3] = {c / (r * r), c / r % r, c % r};
            double g[3], point[3];
            for (int a = 0; a < 3; a++) g[a] = job->corner[3 * cube + a] + in_cube[a];
            for (int a = 0; a < 3; a++)
                point[a] = m[4 * a] * g[0] + m[4 * a + 1] * g[1] + m[4 * a + 2] * g[2] +
                           m[4 * a + 3];
            *value++ = NAME(sample)(v, type, point, job->fill, NULL);
        }
    NAME(write)(job, b, from * r * r * r, value - work->tile, work->tile);
}

INLINE void NAME(zero_padding)(const Job *job, int64_t b, int64_t cube)
{
    const int32_t r = job->cube, *corner = job->corner + 3 * cube;
    char *out = job->out + (b * job->cubes + cube) * r * r * r * job->out_size;
    for (int32_t c = 0; c < r * r * r; c++, out += job->out_size) {
        const int32_t in_cube[3] = {c / (r * r), c / r % r, c % r};
        for (int a = 0; a < 3; a++) {
            const int32_t g = corner[a] + in_cube[a];
            if (g < 0 || g >= job->grid[a]) memset(out, 0, (size_t)job->out_size);
        }
    }
}

INLINE void NAME(large_cube)(const Job *job, const Volume *v, int64_t b, int64_t cube, Work *work)
{
    Piece p;
    int whole = 1, empty = 0;
    for (int a = 0; a < 3; a++) {
        const int32_t corner = job->corner[3 * cube + a];
        p.at[a] = (int32_t)max(-corner, 0);
        p.first[a] = corner + p.at[a];
        p.n[a] = (int32_t)min(job->cube, job->grid[a] - corner) - p.at[a];
        whole &= p.n[a] == job->cube;
        empty |= p.n[a] <= 0;
    }
    const int64_t bytes = (int64_t)job->cube * job->cube * job->cube * job->out_size;
    if (!whole) memset(job->out + (b * job->cubes + cube) * bytes, 0, (size_t)bytes);
    if (!empty) NAME(piece)(job, v, b, cube, p, work);
}

/* Tokens of one share of the cubes of one volume. */
static void NAME(cubes)(const Job *job, int64_t share)
{
    Work work;
    memset(work.rows, 0, sizeof work.rows);
    const int64_t shares = (job->cubes + job->share - 1) / job->share;
    const int64_t b = share / shares, from = share % shares * job->share;
    const int64_t to = min(from + job->share, job->cubes);
    Volume v = job->volume;
    v.data += b * job->batch_stride;
    if (job->cube > SMALL) {
        for (int64_t cube = from; cube < to; cube++) NAME(large_cube)(job, &v, b, cube, &work);
        return;
    }
    switch (v.type) {
    case INT16: NAME(small_cubes)(job, &v, INT16, b, from, to, &work); break;
    case UINT16: NAME(small_cubes)(job, &v, UINT16, b, from, to, &work); break;
    case FLOAT16: NAME(small_cubes)(job, &v, FLOAT16, b, from, to, &work); break;
    default: NAME(small_cubes)(job, &v, FLOAT32, b, from, to, &work);
    }
    for (int64_t cube = from; job->cube > 1 && cube < to; cube++) NAME(zero_padding)(job, b, cube);
}

/* Values, and gradients if wanted, at one share of a list of points. */
static void NAME(points)(const Points *job, int64_t share)
{
    const int64_t from = share * POINTS_SHARE, to = min(from + POINTS_SHARE, job->count);
    for (int64_t i = from; i < to; i++) {
        float *gradient = job->gradient ? job->gradient + 3 * i : NULL;
        job->out[i] =
            NAME(sample)(&job->volume, job->volume.type, job->points + 3 * i, job->fill, gradient);
    }
}
