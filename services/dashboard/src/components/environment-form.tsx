import { DEFAULT_SANDBOX, type Environment, LIMITS, type SandboxEnvironment } from '@holdfast/contracts';
import { useMutation } from '@tanstack/react-query';
import { ChevronRight } from 'lucide-react';
import { type ReactNode, useState } from 'react';
import { api, messageOf } from '../lib/api.ts';
import { environmentFaults, type SandboxTexts, sandboxFrom, textsOf } from '../lib/sandbox-settings.ts';
import { Button, Field, FormError, Input, Select, TextArea } from './ui.tsx';

/** Makes an environment, or changes the one that is given. */
export function EnvironmentForm({ environment, onDone }: { environment?: Environment; onDone: () => void }) {
  const config = environment?.config;
  const cloud = config?.type === 'cloud' ? config : undefined;
  const before = cloud?.networking;
  const [type, setType] = useState(config?.type ?? 'cloud');
  const [name, setName] = useState(environment?.name ?? '');
  const [networking, setNetworking] = useState<'limited' | 'unrestricted'>(before?.type ?? 'limited');
  const [hosts, setHosts] = useState(before?.type === 'limited' ? before.allowed_hosts.join('\n') : '');
  const [sandbox, setSandbox] = useState(() => textsOf(cloud?.x_sandbox ?? DEFAULT_SANDBOX));
  const [faults, setFaults] = useState<Readonly<Record<string, string>>>({});
  const save = useMutation({
    mutationFn: (body: object) =>
      api<Environment>(environment === undefined ? '/v1/environments' : `/v1/environments/${environment.id}`, { body }),
    onSuccess: onDone,
  });
  const submit = () => {
    const body = {
      name: name.trim(),
      config:
        type === 'self_hosted'
          ? { type }
          : {
              type,
              networking:
                networking === 'unrestricted'
                  ? { type: networking }
                  : { type: networking, allowed_hosts: hosts.split(/[\s,]+/).filter((host) => host !== '') },
              x_sandbox: sandboxFrom(sandbox),
            },
    };
    const found = environmentFaults(body);
    setFaults(found);
    if (Object.keys(found).length === 0) save.mutate(body);
  };
  return (
    <form
      className="space-y-4"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <Field
        label="Name"
        error={faults['name']}
        {...(environment?.name === 'default' ? { hint: 'Sessions that name no environment run in this one.' } : {})}
      >
        <Input
          value={name}
          onChange={(event) => setName(event.target.value)}
          required
          maxLength={LIMITS.nameChars}
          disabled={environment?.name === 'default'}
        />
      </Field>
      <Field
        label="Tools run"
        hint={
          type === 'cloud'
            ? 'The platform makes a sandbox for each session.'
            : 'On machines of yours: an environment worker asks for work with a key of this environment.'
        }
      >
        <Select
          value={type}
          onChange={(event) => setType(event.target.value as typeof type)}
          disabled={environment !== undefined}
        >
          <option value="cloud">In sandboxes of this platform</option>
          <option value="self_hosted">On a self-hosted worker</option>
        </Select>
      </Field>
      {type === 'cloud' ? (
        <>
          <Field label="Network">
            <Select value={networking} onChange={(event) => setNetworking(event.target.value as typeof networking)}>
              <option value="limited">Only the hosts below</option>
              <option value="unrestricted">Any public address</option>
            </Select>
          </Field>
          {networking === 'limited' ? (
            <Field
              label="Allowed hosts"
              hint="One per line; *.example.com allows every name below it. Empty: no network."
              error={faults['networking']}
            >
              <TextArea
                rows={4}
                className="font-mono text-xs"
                value={hosts}
                onChange={(event) => setHosts(event.target.value)}
              />
            </Field>
          ) : null}
          <SandboxSettings
            texts={sandbox}
            faults={faults}
            onChange={(change) => setSandbox({ ...sandbox, ...change })}
          />
        </>
      ) : null}
      {save.isError ? <FormError text={messageOf(save.error)} /> : null}
      <div className="flex justify-end">
        <Button look="primary" type="submit" busy={save.isPending}>
          {environment === undefined ? 'Create' : 'Save'}
        </Button>
      </div>
    </form>
  );
}

/** What an empty field stands for, as the platform comes. */
const OWN = 'Empty: as the platform is set';

function SandboxSettings(props: {
  texts: SandboxTexts;
  faults: Readonly<Record<string, string>>;
  onChange: (change: Partial<SandboxTexts>) => void;
}) {
  const { texts, faults } = props;
  const [isOpen, setOpen] = useState(false);
  // A fault must not lie hidden.
  const isFaulty = Object.keys(faults).some((name) => name in texts);
  const setting = (name: keyof SandboxEnvironment, label: string, hint: ReactNode, more: object = {}) => (
    <Field label={label} hint={hint} error={faults[name]}>
      <Input
        value={texts[name]}
        onChange={(event) => props.onChange({ [name]: event.target.value })}
        autoComplete="off"
        spellCheck={false}
        {...more}
      />
    </Field>
  );
  const amount = (name: keyof SandboxEnvironment, label: string, hint: ReactNode) =>
    setting(name, label, hint, { inputMode: 'numeric' });
  const list = (name: 'node_selector' | 'tolerations', label: string, hint: ReactNode) => (
    <Field label={label} hint={hint} error={faults[name]}>
      <TextArea
        rows={2}
        className="font-mono text-xs"
        value={texts[name]}
        onChange={(event) => props.onChange({ [name]: event.target.value })}
        spellCheck={false}
      />
    </Field>
  );
  return (
    <details
      className="group/sandbox rounded-lg border"
      open={isOpen || isFaulty}
      onToggle={(event) => setOpen(event.currentTarget.open)}
    >
      <summary className="flex items-center gap-2 px-3 py-2 text-sm font-medium">
        <ChevronRight className="size-4 text-soft transition-transform group-open/sandbox:rotate-90" aria-hidden />
        <span>Sandbox</span>
        <span className="min-w-0 flex-1 truncate text-right text-xs font-normal text-soft">
          size, workspace, idleness, cluster
        </span>
      </summary>
      <div className="space-y-4 border-t p-3">
        <p className="text-xs text-soft">
          Sandboxes that run already stay as they are; new ones have what is said here.
        </p>
        <div className="grid grid-cols-1 gap-4 sm:grid-cols-2">
          {amount('cpu_millis', 'Processor, thousandths of a core', `1000 is one core. ${OWN}, by default 2000.`)}
          {amount('memory_mib', 'Memory, MiB', `At least 64. ${OWN}, by default 2048.`)}
          <Field
            label="Workspace"
            error={faults['workspace']}
            hint={
              texts.workspace === 'volume'
                ? 'An idle sandbox sleeps, and wakes with its files.'
                : 'An idle sandbox is given back, and its files are gone.'
            }
          >
            <Select value={texts.workspace} onChange={(event) => props.onChange({ workspace: event.target.value })}>
              <option value="volume">Volume: files are kept</option>
              <option value="ephemeral">Ephemeral: files go with it</option>
            </Select>
          </Field>
          {amount('workspace_mib', 'Workspace size, MiB', `At least 16. ${OWN}, by default 5120.`)}
          {amount('idle_seconds', 'Idle after, seconds', `So long without a tool call. ${OWN}, by default 900.`)}
          {amount(
            'max_lifetime_seconds',
            'Longest life, seconds',
            'Older than this it rests, as if idle, once no call runs. Empty: no bound.',
          )}
        </div>
        <p className="border-t pt-3 text-xs text-soft">
          What follows is for a Kubernetes cluster; sandboxes on this machine pass over it.
        </p>
        {amount(
          'pool_size',
          'Pool size, sandboxes',
          `From 0 to ${LIMITS.poolSize} are kept warm, so that a session need not wait for one. 0: each starts cold.`,
        )}
        {setting('image', 'Image', `What a sandbox is made of, with a runner in it. ${OWN}.`)}
        <div className="grid grid-cols-1 gap-4 sm:grid-cols-2">
          {setting('runtime_class', 'Runtime class', 'For example gvisor. Empty: the cluster’s own.')}
          {setting('storage_class', 'Storage class', 'Of volumes. Empty: the cluster’s own.')}
          {list('node_selector', 'Node labels', 'One per line, disk=ssd. It runs only on nodes that have them all.')}
          {list('tolerations', 'Tolerated taints', 'One per line: key=value:NoSchedule, key:NoExecute, or * for all.')}
        </div>
      </div>
    </details>
  );
}
