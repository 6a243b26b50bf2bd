/* Answer for a raw volume: int16, little endian, C order.

       answer_volume BUNDLE VOLUME.raw SLICES ROWS COLUMNS SPACING_MM_S SPACING_MM_R SPACING_MM_C

   The volume is taken to be axial, feet to head, rows to the back, columns to the left. */

#include <decipher_rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, drt_last_error());
    return 1;
}

static int print_answers(const drt_session *session) {
    drt_session_info info = {.struct_size = sizeof info};
    drt_scope scope = {.struct_size = sizeof scope};
    drt_times times = {.struct_size = sizeof times};
    size_t size = 0;
    if (drt_session_describe(session, &info) != DRT_OK || drt_scope_of_result(session, &scope) != DRT_OK ||
        drt_times_of_result(session, &times) != DRT_OK || drt_embedding(session, NULL, 0, &size) != DRT_OK)
        return fail("result");
    printf("embedding of %zu values; %s\n", size, scope.reason);
    for (uint32_t i = 0; i < info.heads; ++i) {
        drt_head_info head = {.struct_size = sizeof head};
        if (drt_session_head(session, i, &head) != DRT_OK) return fail("head");
        const int localises = head.kind == DRT_LOCALISATION;
        drt_status status = localises ? drt_head_boxes(session, head.name, NULL, 0, &size)
                                      : drt_head_values(session, head.name, NULL, 0, &size);
        void *answers = malloc((size + 1) * sizeof(drt_box));  /* room for as many floats, too */
        if (status == DRT_OK)
            status = localises ? drt_head_boxes(session, head.name, answers, size, &size)
                               : drt_head_values(session, head.name, answers, size, &size);
        if (status != DRT_OK && status != DRT_ERROR_NOT_ANSWERED) return fail(head.name);
        const drt_box *boxes = answers;
        const float *values = answers;
        printf(status == DRT_OK ? "%s:" : "%s: not answered", head.name);
        for (size_t k = 0; status == DRT_OK && k < size; ++k) {
            const char *label = drt_head_label(session, head.name, k);
            if (localises)
                printf(" x %.0f mm, score %.3f", boxes[k].center_lps_mm[0], boxes[k].score);
            else
                printf(" %s %.3f", label != NULL ? label : head.unit, (double)values[k]);
        }
        printf("\n");
        free(answers);
    }
    printf("opened in %.0f ms, answered in %.0f ms: preprocessing %.0f, encoder %.0f, heads %.0f\n", times.open_ms,
           times.total_ms, times.preprocess_ms, times.encode_ms, times.heads_ms);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fprintf(stderr, "usage: %s BUNDLE VOLUME.raw SLICES ROWS COLUMNS SPACING_MM_S SPACING_MM_R SPACING_MM_C\n", argv[0]);
        return 2;
    }
    drt_session_params params;
    drt_session_default_params(&params, sizeof params);
    params.threads = 2;
    params.cache_folder = getenv("DECIPHER_RT_CACHE");

    drt_volume volume;
    drt_default_volume(&volume, sizeof volume);
    volume.type = DRT_INT16;
    volume.modality = "MR";
    size_t voxels = 1;
    for (int i = 0; i < 3; ++i) {
        volume.shape[i] = strtoll(argv[3 + i], NULL, 10);
        voxels *= (size_t)volume.shape[i];
    }
    memset(volume.affine_lps_mm, 0, sizeof volume.affine_lps_mm);
    volume.affine_lps_mm[2] = strtod(argv[8], NULL);  /* columns run to L */
    volume.affine_lps_mm[5] = strtod(argv[7], NULL);  /* rows to P */
    volume.affine_lps_mm[8] = strtod(argv[6], NULL);  /* slices to S */
    volume.affine_lps_mm[15] = 1;

    FILE *file = fopen(argv[2], "rb");
    int16_t *data = malloc(voxels * sizeof *data);
    const size_t got = file != NULL && data != NULL ? fread(data, sizeof *data, voxels, file) : 0;
    const int whole = voxels > 0 && got == voxels && fgetc(file) == EOF;
    if (file != NULL) fclose(file);
    int result = 1;
    drt_session *session = NULL;
    volume.voxels = data;
    if (!whole)
        fprintf(stderr, "%s: cannot be read, or does not hold %zu voxels\n", argv[2], voxels);
    else if (drt_session_open(argv[1], &params, &session) != DRT_OK)
        result = fail("open");
    else if (drt_session_run(session, &volume) != DRT_OK)
        result = fail("run");
    else
        result = print_answers(session);
    drt_session_close(session);
    free(data);
    return result;
}
