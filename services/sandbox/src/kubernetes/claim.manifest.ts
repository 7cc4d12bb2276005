import type { SandboxClaim } from './kinds.ts';
import { ANNOTATIONS, claimName, idHash, LABELS, namespaceName } from './names.ts';
import { type ClusterSettings, ownLabels } from './settings.manifest.ts';

export interface ClaimOf {
  readonly workspaceId: string;
  readonly environmentId: string;
  readonly sandboxId: string;
  readonly sessionId: string;
  /** 1, 2, … each time that the sandbox is made anew. */
  readonly incarnation: number;
  /** Of the pool whose template it is made from, warm or cold. */
  readonly pool: string;
  /** When it ends by itself unless it is renewed. */
  readonly deadline: Date;
}

/** A sandbox's claim. It says nothing that would force a cold start: what the sandbox is for comes over its link. */
export function claimObject(settings: ClusterSettings, of: ClaimOf): SandboxClaim {
  const annotations = {
    [ANNOTATIONS.workspaceId]: of.workspaceId,
    [ANNOTATIONS.environmentId]: of.environmentId,
    [ANNOTATIONS.sandboxId]: of.sandboxId,
    [ANNOTATIONS.sessionId]: of.sessionId,
    [ANNOTATIONS.incarnation]: String(of.incarnation),
  };
  return {
    apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
    kind: 'SandboxClaim',
    metadata: {
      name: claimName(of.sandboxId, of.incarnation),
      namespace: namespaceName(settings.installation, of.workspaceId),
      labels: {
        ...ownLabels(settings),
        [LABELS.workspace]: idHash(of.workspaceId),
        [LABELS.environment]: idHash(of.environmentId),
        [LABELS.sandbox]: idHash(of.sandboxId),
      },
      annotations,
    },
    spec: {
      warmPoolRef: { name: of.pool },
      lifecycle: { shutdownTime: claimTime(of.deadline), shutdownPolicy: 'Delete' },
    },
  };
}

/**
 * As the cluster writes a time itself. A finer one would be rewritten by the controller, which then owns the field.
 */
export function claimTime(at: Date): string {
  return `${at.toISOString().slice(0, 19)}Z`;
}
