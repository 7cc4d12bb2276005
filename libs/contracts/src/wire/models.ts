import { z } from 'zod';
import type { DeepReadonly } from '../json.ts';
import { timestamp } from './common.ts';

/** A model as the wire has it. The gateway lists names; what it does not tell is null. */
export const modelResource = z.strictObject({
  id: z.string(),
  type: z.literal('model'),
  display_name: z.string(),
  created_at: timestamp,
  lifecycle: z.literal('active'),
  line: z.null(),
  allowed_fallback_models: z.null(),
  capabilities: z.null(),
  deprecated_at: z.null(),
  retires_at: z.null(),
  max_input_tokens: z.null(),
  max_tokens: z.null(),
});
export type Model = DeepReadonly<z.infer<typeof modelResource>>;
