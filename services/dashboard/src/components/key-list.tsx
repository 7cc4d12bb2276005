import type { ApiKeyResource, EnvironmentKeyResource } from '@holdfast/contracts';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { KeyRound, Plus } from 'lucide-react';
import { type ReactNode, useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import { Paged, usePages } from './paged.tsx';
import { Badge, Button, Confirm, CopyButton, cn, Empty, Field, FormError, Input, Modal, Panel, Time } from './ui.tsx';

type Key = ApiKeyResource | EnvironmentKeyResource;

/** Keys of one kind: lists, makes and revokes them. A new one is shown once. */
export function KeyList(props: {
  /** Where they are listed and made. */
  path: string;
  /** What one is called in a title, for example `API key`. */
  name: string;
  /** What ends with one that is revoked. */
  whatEnds: string;
  /** What stands above the list, with the button that makes one. */
  header: (create: ReactNode) => ReactNode;
}) {
  const { path, name: kind } = props;
  const client = useQueryClient();
  const list = usePages<Key>(['keys', path], `${path}?limit=50`);
  const [creating, setCreating] = useState(false);
  const [name, setName] = useState('');
  const [made, setMade] = useState<string>();
  const [revoking, setRevoking] = useState<Key>();
  const refresh = () => client.invalidateQueries({ queryKey: ['keys', path] });
  const create = useMutation({
    mutationFn: () => api<Key & { key: string }>(path, { body: { name } }),
    onSuccess: async ({ key }) => {
      setMade(key);
      await refresh();
    },
  });
  const revoke = useMutation({
    mutationFn: (id: string) => api(`/v1/x/api_keys/${id}/revoke`, { method: 'POST' }),
    onSuccess: async () => {
      setRevoking(undefined);
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  const close = () => {
    setCreating(false);
    setMade(undefined);
    setName('');
    create.reset();
  };
  return (
    <>
      {props.header(
        <Button look="primary" onClick={() => setCreating(true)}>
          <Plus className="size-4" aria-hidden /> New key
        </Button>,
      )}
      <Panel className="overflow-hidden">
        <Paged list={list} empty={<Empty icon={<KeyRound />} title="No keys" />}>
          <ul className="divide-y">
            {list.items.map((key) => (
              <li key={key.id} className="flex items-center gap-4 px-4 py-2.5">
                <span className={cn('min-w-0 flex-1', key.revoked_at !== null && 'text-soft line-through')}>
                  <span className="block truncate text-sm font-medium">{key.name}</span>
                  <span className="block truncate text-xs text-soft">
                    <span className="font-mono">{key.hint}</span> · created <Time at={key.created_at} />
                  </span>
                </span>
                {key.revoked_at === null ? (
                  <Button size="small" onClick={() => setRevoking(key)}>
                    Revoke
                  </Button>
                ) : (
                  <Badge tone="bad">Revoked</Badge>
                )}
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
      <Modal
        open={creating}
        onClose={close}
        title={made === undefined ? `New ${kind}` : 'Your new key'}
        {...(made === undefined ? {} : { about: 'Copy it now: it is not shown again.' })}
      >
        {made === undefined ? (
          <form
            className="space-y-4"
            onSubmit={(event) => {
              event.preventDefault();
              create.mutate();
            }}
          >
            <Field label="Name" hint="Who or what uses it.">
              <Input value={name} onChange={(event) => setName(event.target.value)} required maxLength={256} />
            </Field>
            {create.isError ? <FormError text={messageOf(create.error)} /> : null}
            <div className="flex justify-end">
              <Button look="primary" type="submit" busy={create.isPending}>
                Create
              </Button>
            </div>
          </form>
        ) : (
          <div className="space-y-4">
            <div className="flex items-start gap-2 rounded-lg bg-raised p-3">
              <code className="min-w-0 flex-1 font-mono text-sm break-all">{made}</code>
              <CopyButton text={made} label="Copy the key" />
            </div>
            <div className="flex justify-end">
              <Button look="primary" onClick={close}>
                Done
              </Button>
            </div>
          </div>
        )}
      </Modal>
      <Confirm
        open={revoking !== undefined}
        title={`Revoke ${revoking?.name ?? ''}?`}
        about={`Requests with it are refused at once; ${props.whatEnds} end. This cannot be undone.`}
        action="Revoke"
        busy={revoke.isPending}
        onConfirm={() => revoking !== undefined && revoke.mutate(revoking.id)}
        onClose={() => setRevoking(undefined)}
      />
    </>
  );
}
