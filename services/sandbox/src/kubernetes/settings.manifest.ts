import { LABELS, MANAGED_BY } from './names.ts';

/** What every object on the cluster is made with. */
export interface ClusterSettings {
  /** Tells several installations on one cluster apart; 1 to 24 of a-z and 0-9. */
  readonly installation: string;
  readonly image: string;
  readonly imagePullPolicy: 'Always' | 'IfNotPresent' | 'Never';
  /** Where pods dial, as they see it. */
  readonly hubUrl: string;
  /** PEM of the hub's certificate, which runners know it by. */
  readonly hubCa: string;
  /**
   * What pods may reach, at the hub's port. Null or empty = the address in `hubUrl`; where that is a name
   * `<service>.<namespace>.svc…`, the pods of the sandbox service in that namespace.
   */
  readonly hubCidrs: readonly string[] | null;
  readonly cpuMillis: number;
  /** What a node sets aside: sandboxes wait for a model most of the time. */
  readonly cpuRequestMillis: number;
  readonly memoryMib: number;
  readonly workspaceMib: number;
  readonly tmpMib: number;
  /** ReadWriteOnce binds all sessions of a context to one node. */
  readonly contextAccessMode: 'ReadWriteMany' | 'ReadWriteOnce';
  /** What one workspace may use at once. */
  readonly quota: {
    readonly pods: number;
    readonly cpuMillis: number;
    readonly memoryMib: number;
    readonly storageMib: number;
  };
}

/** What every object of an installation is labelled with, and selected by. */
export function ownLabels(settings: Pick<ClusterSettings, 'installation'>): Record<string, string> {
  return { [LABELS.managedBy]: MANAGED_BY, [LABELS.installation]: settings.installation };
}

/** As Kubernetes writes it itself, so that nothing looks changed: `1500m`, `2`. */
export function cpu(millis: number): string {
  return millis % 1000 === 0 ? String(millis / 1000) : `${millis}m`;
}

/** As Kubernetes writes it itself: `1536Mi`, `2Gi`. */
export function mebibytes(count: number): string {
  return count % 1024 === 0 ? `${count / 1024}Gi` : `${count}Mi`;
}
