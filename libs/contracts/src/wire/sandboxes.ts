import { z } from 'zod';
import type { DeepReadonly } from '../json.ts';
import { SANDBOX_REASONS } from '../sandbox/sandbox.messages.ts';
import { timestamp } from './common.ts';

export const SANDBOX_STATUSES = ['starting', 'ready', 'suspended', 'failed', 'destroyed'] as const;
export type SandboxStatus = (typeof SANDBOX_STATUSES)[number];

/** `GET /v1/x/sandboxes` and `/v1/x/sandboxes/{id}`: where a session's tools run; our addition to the wire contract. */
export const sandboxResource = z.strictObject({
  id: z.string(),
  type: z.literal('sandbox'),
  session_id: z.string(),
  environment_id: z.string(),
  context_key: z.string().nullable(),
  provider: z.string(),
  /** How its processes are isolated, once it was ready: `bubblewrap`, a runtime class, `container`, `none`. */
  isolation: z.string().nullable(),
  status: z.enum(SANDBOX_STATUSES),
  /** Why it is not ready, or failed; null when nothing is wrong. `hint` says what to do. */
  reason: z
    .strictObject({
      code: z.enum(SANDBOX_REASONS).nullable(),
      message: z.string(),
      hint: z.string().nullable(),
      since: timestamp,
    })
    .nullable(),
  /** How often it was started. */
  incarnation: z.int(),
  /** Whether this start came from the pool. */
  launch: z.enum(['warm', 'cold', 'resumed']).nullable(),
  /** Where it runs on a cluster; null elsewhere and while it does not run. */
  namespace: z.string().nullable(),
  pod: z.string().nullable(),
  node: z.string().nullable(),
  created_at: timestamp,
  /** When the present incarnation was ready. */
  ready_at: timestamp.nullable(),
  updated_at: timestamp,
});
export type Sandbox = DeepReadonly<z.infer<typeof sandboxResource>>;

/** `GET /v1/x/sandbox_pools`: what each environment keeps warm. */
export const sandboxPoolResource = z.strictObject({
  type: z.literal('sandbox_pool'),
  environment_id: z.string(),
  environment_name: z.string(),
  /** As the environment asks. */
  size: z.int(),
  /** Warm and ready to be claimed. */
  ready: z.int(),
  /** Sandboxes of the environment that were claimed in the last minute. */
  claims_per_minute: z.int(),
  /** Sandboxes of the environment that wait to be ready now. */
  waiting: z.int(),
  /** Why it is not full; null when it is, or fills. */
  reason: z.strictObject({ code: z.enum(SANDBOX_REASONS), message: z.string() }).nullable(),
  /** When `ready` and `reason` were looked at; null while nothing has, as where the provider keeps no pools. */
  observed_at: timestamp.nullable(),
});
export type SandboxPool = DeepReadonly<z.infer<typeof sandboxPoolResource>>;

/** What whoever runs the platform does about a reason; one sentence each. */
export const SANDBOX_HINTS: Readonly<Record<(typeof SANDBOX_REASONS)[number], string>> = {
  unschedulable:
    'No node can take it: add a node, ask for less CPU or memory, or change the node selector and tolerations of the environment.',
  'image-pull': 'The image cannot be pulled: check its name in the environment, and the credentials of the cluster.',
  'quota-exceeded':
    'The quota of the workspace is used up: end sessions that are done, lower the pool sizes, or raise the quota.',
  'crash-loop': 'Its runner ends again and again: look at the logs of the pod, and at its memory limit.',
  'cluster-unreachable': 'The API server does not answer; it is asked again.',
  'cluster-refused':
    'The API server refuses what is asked: compare the message with the rights and policies of the cluster.',
  'pool-empty': 'Nothing warm was left, so it starts cold; a larger pool avoids that.',
  'node-lost': 'Its node does not answer: the sandbox moves when the cluster has given the node up.',
  'volume-pending': 'Its volume is not there yet: check the storage class of the environment.',
  'not-linked': 'Its runner has not dialled the hub: check that pods can reach the address of the hub, and the image.',
  starting: 'It is being made.',
};
