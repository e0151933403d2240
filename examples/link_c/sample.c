/* Noise, a reparameterised sample and a likelihood from C. Every number is printed in hexadecimal, exactly: the same
   key gives the same bits here, in Python and on a GPU. */
#include <variate/variate.h>

#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 2, COLS = 6 };

/* A call fails with a status, and says why in the thread's last error. */
static void check(variate_status status) {
  if (status == VARIATE_OK) return;
  fprintf(stderr, "%s\n", variate_last_error());
  exit(EXIT_FAILURE);
}

/* A row-major [rows, cols] matrix of float. Strides count elements, so any layout can be described; a row stride of 0
   reads one row for all. */
static variate_tensor matrix(float* data, int64_t cols) {
  variate_tensor tensor = {data, VARIATE_FLOAT32, cols, 1};
  return tensor;
}

/* Every struct starts at zero: a tensor whose data is NULL is left out, device 0 is the CPU, threads 0 means one. */
#define ARGS(type, name)  \
  struct type name = {0}; \
  name.struct_size = sizeof name

static void print(const char* name, const float* x, int count) {
  printf("%s", name);
  for (int i = 0; i < count; ++i) printf(" %a", x[i]);
  printf("\n");
}

int main(void) {
  const int64_t key[2] = {42, 0}; /* (seed, offset), as variate.random.key(42) in Python */

  /* Standard normals: row r is sample r of the key's stream, column c its element c. */
  float normals[ROWS * COLS];
  ARGS(variate_random_args, draw);
  draw.noise.key = key;
  draw.rows = ROWS;
  draw.cols = COLS;
  draw.out = matrix(normals, COLS);
  check(variate_normal(&draw));
  print("normal", normals, ROWS * COLS);

  /* z = mean + exp(log_var / 2) eps and kl[r] = KL(N(mean, e^log_var) || N(0, 1)), in one pass. */
  float mean[ROWS * COLS], log_var[ROWS * COLS], z[ROWS * COLS], kl[ROWS];
  for (int i = 0; i < ROWS * COLS; ++i) {
    mean[i] = 0.25f * (float)i - 1.0f;
    log_var[i] = 0.5f - 0.125f * (float)i;
  }
  ARGS(variate_normal_rsample_kl_args, sample);
  sample.noise.key = key;
  sample.rows = ROWS;
  sample.cols = COLS;
  sample.mean = matrix(mean, COLS);
  sample.log_var = matrix(log_var, COLS);
  sample.z = matrix(z, COLS);
  sample.kl = matrix(kl, 1);
  /* The library allocates nothing that a call leaves behind: it says how many bytes it needs, 0 for rows this short. */
  sample.execution.workspace_bytes = variate_normal_rsample_kl_workspace(&sample);
  sample.execution.workspace = malloc(sample.execution.workspace_bytes);
  check(variate_normal_rsample_kl(&sample));
  free(sample.execution.workspace);
  print("z", z, ROWS * COLS);
  print("kl", kl, ROWS);

  /* -log Bernoulli(target | sigmoid(z)), summed over columns; the target here is of bytes. */
  uint8_t target[ROWS * COLS];
  for (int i = 0; i < ROWS * COLS; ++i) target[i] = i % 3 == 0;
  float nll[ROWS];
  ARGS(variate_bernoulli_nll_args, likelihood);
  likelihood.rows = ROWS;
  likelihood.cols = COLS;
  likelihood.logits = matrix(z, COLS);
  likelihood.target.data = target;
  likelihood.target.dtype = VARIATE_UINT8;
  likelihood.target.row_stride = COLS;
  likelihood.target.col_stride = 1;
  likelihood.nll = matrix(nll, 1);
  likelihood.execution.workspace_bytes = variate_bernoulli_nll_workspace(&likelihood);
  likelihood.execution.workspace = malloc(likelihood.execution.workspace_bytes);
  check(variate_bernoulli_nll(&likelihood));
  free(likelihood.execution.workspace);
  print("nll", nll, ROWS);
  return EXIT_SUCCESS;
}
