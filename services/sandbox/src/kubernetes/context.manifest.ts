import {
  type EnvironmentOf,
  environmentAnnotations,
  environmentLabels,
  poolOf,
  type RunnerTemplate,
  templateOf,
} from './environment.manifest.ts';
import type { PersistentVolumeClaim, SandboxWarmPool } from './kinds.ts';
import { ANNOTATIONS, contextName, contextVolumeName, idHash, LABELS, namespaceName } from './names.ts';
import { blueprint, volumeSpec } from './pod.manifest.ts';
import type { ClusterSettings } from './settings.manifest.ts';

export interface ContextOf extends EnvironmentOf {
  /** Unique to (workspace, environment, context key). */
  readonly contextId: string;
}

/**
 * What the sessions of a context need: the volume that is their workspace, and a template of its own whose pods mount
 * it. Nothing is kept warm for it. The volume is made once: most of it can never be changed, and its name stays the same
 * whatever becomes of the environment.
 */
export function contextObjects(
  settings: ClusterSettings,
  of: ContextOf,
): { readonly volume: PersistentVolumeClaim; readonly template: RunnerTemplate; readonly pool: SandboxWarmPool } {
  const namespace = namespaceName(settings.installation, of.workspaceId);
  const labels = { ...environmentLabels(settings, of), [LABELS.context]: idHash(of.contextId) };
  const annotations = { ...environmentAnnotations(of), [ANNOTATIONS.context]: of.contextId };
  const volumeName = contextVolumeName(of.contextId);
  const made = blueprint(settings, of.sandbox, labels, volumeName);
  const metadata = { name: contextName(of.contextId, made), namespace, labels, annotations };
  return {
    volume: {
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { name: volumeName, namespace, labels, annotations },
      spec: volumeSpec(of.sandbox, of.sandbox.workspace_mib ?? settings.workspaceMib, settings.contextAccessMode),
    },
    template: templateOf(settings, metadata, made),
    pool: poolOf(metadata, 0),
  };
}
