/* The mean over an area: what OpenCV's INTER_AREA gives where sides do not shrink by whole numbers, in a third of its time.

   As in modules/imgproc/src/resize.cpp (computeResizeAreaTab, ResizeArea_Invoker) each output pixel is a weighted sum of
   source pixels along a row, then of rows, in single precision and in their order. OpenCV's code for three channels goes
   number by number; here the channels of two output pixels are summed at once (AVX2). Part of _resize.c. */

#define AT_ONCE 4 /* source pixels that are taken from one load */

typedef struct {
    int taps;       /* source pixels that are looked at for an output pixel, in fours; weights of 0 after those under it */
    int pairs;      /* of output pixels; an odd last one is there twice */
    int32_t *start; /* [pairs][2] bytes into the row where the first of them is */
    float *weights; /* [pairs][taps][2][4] the weight four times */
} Area;

/* How many source pixels are under an output pixel, at most. */
static int most_under(int from, int to) { return (int)ceil(1.0 / ((double)to / from)) + 1; }

/* The first source pixel under output pixel x, and the weights of it and of those after it. Returns their count. */
static int under(int x, int from, double scale, int *first, float *weights) {
    double low = x * scale, high = low + scale, cell = scale < from - low ? scale : from - low;
    int begin = (int)ceil(low), end = (int)floor(high), count = 0;
    if (end > from - 1) end = from - 1;
    if (begin > end) begin = end;
    *first = begin;
    if (begin - low > 1e-3) *first = begin - 1, weights[count++] = (float)((begin - low) / cell);
    for (int i = begin; i < end; i++) weights[count++] = (float)(1.0 / cell);
    if (high - end > 1e-3) {
        double rest = high - end < 1 ? high - end : 1;
        weights[count++] = (float)((rest < cell ? rest : cell) / cell);
    }
    return count;
}

/* found: room for `taps` weights. */
static void plan_area(Area *area, int from, int to, float *found) {
    double scale = 1.0 / ((double)to / from);
    for (int x = 0; x < 2 * area->pairs; x++) {
        float *weights = area->weights + (x / 2 * area->taps * 2 + x % 2) * 4;
        int first, count = under(x < to ? x : to - 1, from, scale, &first, found);
        area->start[x] = 3 * first;
        for (int tap = 0; tap < area->taps; tap++)
            for (int channel = 0; channel < 4; channel++) weights[8 * tap + channel] = tap < count ? found[tap] : 0;
    }
}

/* Adds a row of bytes, times `share`, to sums [pairs][2][4]. Reads up to 3 * taps + 4 bytes past the row. */
AVX2 static void add_row(const Area *area, const uint8_t *bytes, float share, int is_first, float *sums) {
    const __m256i first_pixel = _mm256_broadcastsi128_si256( /* each byte widened to 32 bits */
        _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1));
    const float *weights = area->weights;
    for (int pair = 0; pair < area->pairs; pair++, sums += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (int tap = 0; tap < area->taps; tap += AT_ONCE) {
            const __m128i a = _mm_loadu_si128((const __m128i *)(bytes + area->start[2 * pair] + 3 * tap));
            const __m128i b = _mm_loadu_si128((const __m128i *)(bytes + area->start[2 * pair + 1] + 3 * tap));
            const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++, weights += 8) {
                __m256i pixel = _mm256_shuffle_epi8(both, _mm256_add_epi32(first_pixel, _mm256_set1_epi32(3 * i)));
                sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_cvtepi32_ps(pixel), _mm256_loadu_ps(weights)));
            }
        }
        sum = _mm256_mul_ps(sum, _mm256_set1_ps(share));
        _mm256_storeu_ps(sums, is_first ? sum : _mm256_add_ps(_mm256_loadu_ps(sums), sum));
    }
}

/* Sums -> bytes, to nearest, ties to even. */
AVX2 static void round_row(const float *sums, int columns, uint8_t *out) {
    for (int x = 0; x < columns; x++) {
        __m128i words = _mm_cvtps_epi32(_mm_loadu_ps(sums + 4 * x));
        int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(words, words), words));
        memcpy(out + 3 * x, &pixel, 3);
    }
}

AVX2 static int average(const uint8_t *source, int height, int width, Py_ssize_t stride, uint8_t *out, int rows, int columns) {
    int taps = (most_under(width, columns) + AT_ONCE - 1) / AT_ONCE * AT_ONCE, past_row = 3 * taps + 4;
    Area area = {.taps = taps, .pairs = (columns + 1) / 2};
    size_t count = 2 * (size_t)area.pairs, row_bytes = 3 * (size_t)width, most_rows = (size_t)most_under(height, rows);
    float *memory = malloc(4 * (count * (1 + 4 * (size_t)taps + 4) + (size_t)taps + most_rows) + row_bytes + (size_t)past_row);
    if (!memory) return -1;
    area.start = (int32_t *)memory, area.weights = memory + count;
    float *sums = area.weights + 4 * count * (size_t)taps, *found = sums + 4 * count, *shares = found + taps;
    uint8_t *near_end = (uint8_t *)(shares + most_rows); /* nothing may be read past the last row where it is */
    plan_area(&area, width, columns, found);
    double scale = 1.0 / ((double)rows / height);
    for (int y = 0; y < rows; y++) {
        int first, last = under(y, height, scale, &first, shares) - 1;
        for (int i = 0; i <= last; i++) {
            const uint8_t *row = source + (first + i) * stride;
            if ((height - 1 - first - i) * stride < past_row) row = memcpy(near_end, row, row_bytes);
            add_row(&area, row, shares[i], i == 0, sums);
        }
        round_row(sums, columns, out + (Py_ssize_t)3 * columns * y);
    }
    free(memory);
    return 0;
}
