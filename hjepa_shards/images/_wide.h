/* _resize.c's two steps on processors with AVX-512 VBMI, where one instruction picks any bytes of 64: the same pixels.

   A value is a pixel's R, G or B, and nothing is padded. A vector holds the neighbours of 16 values, each in 16 bits, and
   two vectors pack into 32 sums: of every eight values four go into either, so that packing puts them in order. */

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi")))
#define BLOCK 64 /* bytes of a register, and values that are worked on at once */

/* What `Row` is, by vectors of 16 values. */
typedef struct {
    int count;        /* values, padded to whole blocks */
    int32_t *weights; /* [count] pairs of 16 bits (left, right) */
    int32_t *pick;    /* [count] pairs of 16 bits: which byte of the vector's 64 is the left neighbour, which the right */
    int32_t *start;   /* [count / 16] bytes into the row where these 64 begin */
} Wide;

static size_t wide_count(int size) { return ((size_t)3 * size + BLOCK - 1) / BLOCK * BLOCK; }

/* 0 where the neighbours of 16 values are further apart than 64 bytes, or the row has no 64. */
AVX512 static int plan_wide(Wide *wide, int width, int size) {
    double scale = 1.0 / ((double)size / width);
    int last_start = 3 * width - BLOCK, fits = last_start >= 0;
    for (int value = 0, x = 0; fits && value < wide->count; x++) {
        int32_t pair;
        int left = 3 * left_of(x, scale, width, &pair);
        for (int colour = 0; colour < 3 && value < wide->count; colour++, value++) {
            int vector = value >> 5 << 1 | (value >> 2 & 1), lane = (value >> 3 & 3) << 2 | (value & 3);
            if (lane == 0) wide->start[vector] = left < last_start ? left : last_start;
            int at = left + colour - wide->start[vector];
            fits &= at + 3 < BLOCK;
            wide->weights[16 * vector + lane] = pair;
            wide->pick[16 * vector + lane] = at | (at + 3) << 16;
        }
    }
    return fits;
}

AVX512 static __m512i sums_of(const Wide *wide, int vector, const uint8_t *bytes) {
    const __mmask64 low_bytes = 0x5555555555555555; /* of each 16 bits */
    __m512i pairs = _mm512_maskz_permutexvar_epi8(low_bytes, _mm512_load_si512(wide->pick + 16 * vector),
                                                  _mm512_loadu_si512(bytes + wide->start[vector]));
    return _mm512_srai_epi32(_mm512_madd_epi16(pairs, _mm512_load_si512(wide->weights + 16 * vector)), 4);
}

/* A row of bytes -> sums [count] of 15 bits. Reads nothing past the row. */
AVX512 static void across_wide(const Wide *wide, const uint8_t *bytes, int16_t *sums) {
    for (int vector = 0; 16 * vector < wide->count; vector += 2)
        _mm512_store_si512(sums + 16 * vector, _mm512_packs_epi32(sums_of(wide, vector, bytes), sums_of(wide, vector + 1, bytes)));
}

AVX512 static __m512i weigh_wide(const int16_t *upper, const int16_t *lower, __m512i of_upper, __m512i of_lower) {
    __m512i a = _mm512_mulhi_epi16(_mm512_load_si512(upper), of_upper);
    __m512i b = _mm512_mulhi_epi16(_mm512_load_si512(lower), of_lower);
    return _mm512_srai_epi16(_mm512_add_epi16(_mm512_add_epi16(a, b), _mm512_set1_epi16(2)), 2);
}

/* Two rows of sums -> `size` pixels of three bytes. */
AVX512 static void down_wide(const int16_t *upper, const int16_t *lower, float between, int size, uint8_t *out) {
    const __m512i of_upper = _mm512_set1_epi16((short)weight(1 - between));
    const __m512i of_lower = _mm512_set1_epi16((short)weight(between));
    const __m512i in_order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    for (int value = 0, left = 3 * size; left > 0; value += BLOCK, left -= BLOCK) {
        const int16_t *a = upper + value, *b = lower + value;
        __m512i bytes = _mm512_packus_epi16(weigh_wide(a, b, of_upper, of_lower), weigh_wide(a + 32, b + 32, of_upper, of_lower));
        bytes = _mm512_permutexvar_epi64(in_order, bytes);
        _mm512_mask_storeu_epi8(out + value, left < BLOCK ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0, bytes);
    }
}
