import type { SandboxEnvironment } from '@holdfast/contracts';
import { hubEgress } from './hub.manifest.ts';
import type { ObjectMeta, SandboxTemplate, SandboxWarmPool } from './kinds.ts';
import { ANNOTATIONS, environmentName, idHash, LABELS, namespaceName } from './names.ts';
import { type Blueprint, blueprint, type RunnerPodSpec } from './pod.manifest.ts';
import { type ClusterSettings, ownLabels } from './settings.manifest.ts';

/** A template whose pods can be nothing but runners. */
export type RunnerTemplate = SandboxTemplate & {
  readonly spec: { readonly podTemplate: { readonly spec: RunnerPodSpec } };
};

export interface EnvironmentOf {
  readonly workspaceId: string;
  readonly environmentId: string;
  readonly sandbox: SandboxEnvironment;
}

/**
 * Template and pool of an environment as it is now. Their name says what their pods are made from: a changed
 * environment has others, and what was claimed from the old ones stays as it is. Pool size and the ways to the hub are
 * not part of it; they change in place.
 */
export function environmentObjects(
  settings: ClusterSettings,
  of: EnvironmentOf,
): { readonly template: RunnerTemplate; readonly pool: SandboxWarmPool } {
  const labels = environmentLabels(settings, of);
  const made = blueprint(settings, of.sandbox, labels);
  const metadata = {
    name: environmentName(of.environmentId, made),
    namespace: namespaceName(settings.installation, of.workspaceId),
    labels,
    annotations: environmentAnnotations(of),
  };
  return { template: templateOf(settings, metadata, made), pool: poolOf(metadata, of.sandbox.pool_size) };
}

export function environmentLabels(settings: ClusterSettings, of: EnvironmentOf): Record<string, string> {
  return {
    ...ownLabels(settings),
    [LABELS.workspace]: idHash(of.workspaceId),
    [LABELS.environment]: idHash(of.environmentId),
  };
}

export function environmentAnnotations(of: EnvironmentOf): Record<string, string> {
  return { [ANNOTATIONS.workspaceId]: of.workspaceId, [ANNOTATIONS.environmentId]: of.environmentId };
}

export function templateOf(settings: ClusterSettings, metadata: ObjectMeta, made: Blueprint): RunnerTemplate {
  return {
    apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
    kind: 'SandboxTemplate',
    metadata,
    spec: {
      podTemplate: {
        metadata: { labels: metadata.labels ?? {}, annotations: metadata.annotations ?? {} },
        spec: made.spec,
      },
      volumeClaimTemplates: made.volumeClaimTemplates,
      networkPolicyManagement: 'Managed',
      networkPolicy: { ingress: [], egress: hubEgress(settings) },
      envVarsInjectionPolicy: 'Disallowed',
      volumeClaimTemplatesPolicy: 'Disallowed',
    },
  };
}

/** A pool of the template that has its name; size 0 = whatever is claimed starts cold. */
export function poolOf(metadata: ObjectMeta, size: number): SandboxWarmPool {
  return {
    apiVersion: 'extensions.agents.x-k8s.io/v1beta1',
    kind: 'SandboxWarmPool',
    metadata,
    spec: {
      replicas: size,
      sandboxTemplateRef: { name: metadata.name },
      // Its template never changes what its pods are made from.
      updateStrategy: { type: 'OnReplenish' },
    },
  };
}
