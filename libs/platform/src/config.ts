import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { AppError } from '@holdfast/contracts';
import { z } from 'zod';

/** A whole number ≥ 1: a count, or a time or size in the unit that the setting's name ends in. */
export const positive = (fallback: number) => z.coerce.number().int().min(1).default(fallback);

/** Where blobs lie: in a folder, or in a bucket where one is named. All services have to be told the same place. */
export const blobSettings = {
  HOLDFAST_STATE_DIR: z.string().default('.holdfast'),
  /** Folder of the blob store; empty = `$HOLDFAST_STATE_DIR/blobs`. */
  BLOB_DIR: z.string().default(''),
  /** Bucket of the blob store in place of the folder. */
  BLOB_S3_BUCKET: z.string().default(''),
  BLOB_S3_REGION: z.string().default('us-east-1'),
  /** URL of an S3 server; empty = Amazon's of the region. */
  BLOB_S3_ENDPOINT: z.union([z.literal(''), z.url({ protocol: /^https?$/ })]).default(''),
  /** What every key begins with. */
  BLOB_S3_PREFIX: z
    .string()
    .regex(/^[\w!.*'()/-]*$/, "may hold A-Z a-z 0-9 _ ! . * ' ( ) / -")
    .default(''),
  /** Whether the bucket's name is part of the path, as most servers but Amazon's want it. */
  BLOB_S3_PATH_STYLE: z.enum(['true', 'false']).default('false'),
  /** Empty, both = what the process has from its surroundings: a role of the instance or pod, the shared credentials file. */
  BLOB_S3_ACCESS_KEY_ID: z.string().default(''),
  BLOB_S3_SECRET_ACCESS_KEY: z.string().default(''),
};
export type BlobConfig = z.infer<z.ZodObject<typeof blobSettings>>;

/**
 * The place that {@link blobSettings} name, for `openBlobStore`. `area` is a part of it with blobs of its own: what is
 * removed there is not missing elsewhere.
 */
export function blobPlace(config: BlobConfig, area = '') {
  if (config.BLOB_S3_BUCKET === '')
    return { folder: join(config.BLOB_DIR === '' ? join(config.HOLDFAST_STATE_DIR, 'blobs') : config.BLOB_DIR, area) };
  const prefix = `${config.BLOB_S3_PREFIX}/${area}`.replace(/\/+/g, '/').replace(/^\/|\/$/g, '');
  return {
    bucket: config.BLOB_S3_BUCKET,
    region: config.BLOB_S3_REGION,
    endpoint: config.BLOB_S3_ENDPOINT === '' ? null : config.BLOB_S3_ENDPOINT,
    prefix: prefix === '' ? '' : `${prefix}/`,
    pathStyle: config.BLOB_S3_PATH_STYLE === 'true',
    credentials:
      config.BLOB_S3_ACCESS_KEY_ID === ''
        ? null
        : { accessKeyId: config.BLOB_S3_ACCESS_KEY_ID, secretAccessKey: config.BLOB_S3_SECRET_ACCESS_KEY },
  };
}

/** What every service is told; its own schema is `z.object({ ...serviceSettings, … })`. */
export const serviceSettings = {
  /** Postgres, with the service's own role. */
  DATABASE_URL: z.string().min(1),
  NATS_URL: z.string().default('nats://127.0.0.1:4222'),
  NATS_USER: z.string().default(''),
  NATS_PASSWORD: z.string().default(''),
  LOG_LEVEL: z.enum(['trace', 'debug', 'info', 'warn', 'error']).default('info'),
  /** Name of this replica, for leases, the status page and the logs. */
  HOLDFAST_INSTANCE: z.string().default(hostname()),
  ...blobSettings,
};

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * Reads a service's settings once; only names that the schema has are looked at. `X_FILE` names a file that holds the
 * value of `X` (a mounted secret); its trailing line break is cut. An empty variable is one that is not set: env files
 * name what they leave open. Values are never part of the error, only names and rules.
 *
 * @throws AppError `config.invalid` whose message lists every fault, one per line.
 */
export function loadConfig<S extends z.ZodObject>(schema: S, environment: Environment): z.infer<S> {
  const values: Record<string, string> = {};
  const faults = new Map<string, string>();
  for (const name of Object.keys(schema.shape)) {
    const direct = environment[name];
    const file = environment[`${name}_FILE`];
    if (direct !== '' && direct !== undefined) values[name] = direct;
    if (file === undefined || file === '') continue;
    if (values[name] !== undefined) faults.set(name, `set either ${name} or ${name}_FILE, not both`);
    else {
      try {
        values[name] = readFileSync(file, 'utf8').trimEnd();
      } catch {
        faults.set(name, `the file that ${name}_FILE names cannot be read`);
      }
    }
  }
  const parsed = schema.safeParse(values);
  for (const issue of parsed.error?.issues ?? []) {
    const name = issue.path.join('.');
    if (!faults.has(name)) faults.set(name, values[name] === undefined ? 'is not set' : issue.message);
  }
  if (faults.size > 0 || !parsed.success) {
    const lines = [...faults].map(([name, fault]) => `  ${name}: ${fault}`);
    throw new AppError('invalid', 'config.invalid', `The configuration has faults:\n${lines.join('\n')}`);
  }
  return parsed.data;
}
