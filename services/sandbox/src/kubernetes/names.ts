import { createHash } from 'node:crypto';
import { AppError } from '@holdfast/contracts';

/** Labels hold what is selected by: hashes, because an id may be longer than a label's value. */
export const LABELS = {
  managedBy: 'app.kubernetes.io/managed-by',
  installation: 'holdfast.dev/installation',
  workspace: 'holdfast.dev/workspace',
  environment: 'holdfast.dev/environment',
  context: 'holdfast.dev/context',
  sandbox: 'holdfast.dev/sandbox',
} as const;
export const MANAGED_BY = 'holdfast';

/** Annotations hold the ids in full. */
export const ANNOTATIONS = {
  workspaceId: 'holdfast.dev/workspace-id',
  environmentId: 'holdfast.dev/environment-id',
  sandboxId: 'holdfast.dev/sandbox-id',
  sessionId: 'holdfast.dev/session-id',
  incarnation: 'holdfast.dev/incarnation',
  context: 'holdfast.dev/context',
} as const;

/** The account that runners run under; it may do nothing. */
export const SERVICE_ACCOUNT = 'holdfast-sandbox';

/** As a label's value, and part of names: as long as two different ones never meet, and short enough for both. */
export function idHash(...parts: readonly string[]): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 20);
}

/** @throws AppError `cluster.installation-invalid`: it stands in names as it is */
export function namespaceName(installation: string, workspaceId: string): string {
  if (!/^[a-z0-9]{1,24}$/.test(installation)) {
    throw new AppError(
      'invalid',
      'cluster.installation-invalid',
      `The installation "${installation}" must be 1 to 24 of a-z and 0-9.`,
    );
  }
  return `holdfast-${installation}-${idHash(installation, workspaceId)}`;
}

/**
 * Of an environment's template and pool, as long as their pods are made from the same `blueprint`. Warm sandboxes are
 * `<pool>-<5 characters>`, their volumes `work-<sandbox>`.
 */
export function environmentName(environmentId: string, blueprint: unknown): string {
  return `env-${idHash(environmentId)}-${blueprintHash(blueprint)}`;
}

/** Of the volume that a context's sessions share; it outlives every change of the environment. */
export function contextVolumeName(contextId: string): string {
  return `ctx-${idHash(contextId)}`;
}

/** Of a context's template and pool. */
export function contextName(contextId: string, blueprint: unknown): string {
  return `ctx-${idHash(contextId)}-${blueprintHash(blueprint)}`;
}

/** Of a sandbox's claim; each incarnation has its own, so that a new one never meets the dying pod of the last. */
export function claimName(sandboxId: string, incarnation: number): string {
  return `sbx-${idHash(sandboxId)}-${incarnation}`;
}

function blueprintHash(blueprint: unknown): string {
  return idHash(JSON.stringify(blueprint)).slice(0, 12);
}
