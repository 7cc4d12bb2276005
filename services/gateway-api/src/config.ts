import { positive, serviceSettings } from '@holdfast/platform';
import { z } from 'zod';

/** Every setting of the gateway. */
export const gatewayConfig = z.object({
  ...serviceSettings,
  HOST: z.string().default('127.0.0.1'),
  API_PORT: z.coerce.number().int().min(0).max(65_535).default(8080),
  /** Asked for its models; the model calls themselves are made by the session service. */
  LITELLM_GATEWAY_URL: z.string().default(''),
  LITELLM_API_KEY: z.string().default(''),
  /** Where the scripted demo gateway answers; the status page says so when `LITELLM_GATEWAY_URL` is that one. */
  DEMO_GATEWAY_URL: z.string().default(''),
  /** How long a request waits for the session service, in milliseconds. */
  COMMAND_TIMEOUT_MS: z.coerce.number().int().min(100).default(10_000),
  /** Largest file that may be uploaded. */
  FILE_MAX_BYTES: positive(500 * 1024 ** 2),
  SSE_PING_MS: z.coerce.number().int().min(100).default(15_000),
  /** Requests that one API key, with the dashboard sessions that hang on it, may send to this process per minute. */
  REQUESTS_PER_MINUTE: z.coerce.number().int().min(1).default(120_000),
  /** Event streams that one API key may have open at this process. */
  STREAMS_PER_KEY: z.coerce.number().int().min(1).default(12_000),
});
export type GatewayConfig = z.infer<typeof gatewayConfig>;
