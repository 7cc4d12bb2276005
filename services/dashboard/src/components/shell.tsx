'use client';
import {
  Activity,
  Bot,
  Box,
  Check,
  KeyRound,
  LogOut,
  Menu,
  MessagesSquare,
  Monitor,
  Moon,
  Server,
  Sun,
  SunMoon,
} from 'lucide-react';
import Link from 'next/link';
import { usePathname } from 'next/navigation';
import { DropdownMenu } from 'radix-ui';
import { type ReactNode, useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import { usePlatformStatus } from '../lib/platform-status.ts';
import { chooseTheme, currentTheme } from '../lib/theme.ts';
import { Mark } from './mark.tsx';
import { MenuChoice, MenuContent, MenuItem } from './menu.tsx';
import { Count, cn } from './ui.tsx';

const PLACES = [
  { href: '/sessions', text: 'Sessions', icon: MessagesSquare },
  { href: '/agents', text: 'Agents', icon: Bot },
  { href: '/environments', text: 'Environments', icon: Server },
  { href: '/sandboxes', text: 'Sandboxes', icon: Box },
  { href: '/keys', text: 'API keys', icon: KeyRound },
  { href: '/status', text: 'Status', icon: Activity },
];
const THEMES = [
  { theme: 'system', text: 'As the system', icon: Monitor },
  { theme: 'light', text: 'Light', icon: Sun },
  { theme: 'dark', text: 'Dark', icon: Moon },
] as const;
const place =
  'flex items-center gap-2.5 rounded-lg px-2.5 py-1.5 text-sm whitespace-nowrap text-soft hover:bg-raised hover:text-ink';

export function Shell({ children }: { children: ReactNode }) {
  const path = usePathname();
  const status = usePlatformStatus();
  const waiting = status.data?.sessions_needing_action ?? 0;
  const isHere = (href: string) => path === href || path.startsWith(`${href}/`);
  return (
    <div className="flex h-dvh flex-col md:flex-row">
      <a
        href="#content"
        className="sr-only focus:not-sr-only focus:absolute focus:z-50 focus:m-2 focus:rounded-lg focus:bg-panel focus:p-2"
      >
        Skip to the content
      </a>
      <header className="flex shrink-0 items-center gap-2 border-b bg-panel px-3 py-2 md:hidden">
        <Home />
        <span className="min-w-0 flex-1 truncate text-sm text-soft">
          {PLACES.find(({ href }) => isHere(href))?.text}
        </span>
        <SmallMenu waiting={waiting} isHere={isHere} />
      </header>
      <header className="hidden h-dvh w-52 shrink-0 flex-col border-r bg-panel p-3 md:flex">
        <div className="mb-3 px-2 py-2">
          <Home />
        </div>
        <nav aria-label="Main" className="flex flex-col gap-0.5">
          {PLACES.map(({ href, text, icon: Icon }) => (
            <Link
              key={href}
              href={href}
              {...(isHere(href) ? { 'aria-current': 'page' as const } : {})}
              className={cn(
                place,
                isHere(href) && 'bg-accent-soft font-medium text-accent hover:bg-accent-soft hover:text-accent',
              )}
            >
              <Icon className="size-4" aria-hidden /> <span className="flex-1">{text}</span>
              {href === '/sessions' ? <Waiting count={waiting} /> : null}
            </Link>
          ))}
        </nav>
        <div className="mt-auto flex flex-col gap-0.5">
          <DropdownMenu.Root>
            <DropdownMenu.Trigger className={place}>
              <SunMoon className="size-4" aria-hidden /> Appearance
            </DropdownMenu.Trigger>
            <MenuContent align="start">
              <ThemeItems />
            </MenuContent>
          </DropdownMenu.Root>
          <button type="button" onClick={() => void signOut()} className={place}>
            <LogOut className="size-4" aria-hidden /> Sign out
          </button>
        </div>
      </header>
      <main id="content" tabIndex={-1} className="flex min-h-0 min-w-0 flex-1 flex-col overflow-y-auto outline-none">
        {status.data?.demo_gateway === true ? <DemoBanner /> : null}
        {status.isError ? (
          <p role="alert" className="shrink-0 border-b bg-bad-soft px-4 py-1.5 text-xs text-bad md:py-2 md:text-sm">
            {messageOf(status.error)} {status.data === undefined ? '' : 'What is shown may be old.'}
          </p>
        ) : null}
        {children}
      </main>
    </div>
  );
}

function DemoBanner() {
  return (
    <p className="shrink-0 border-b bg-warn-soft px-4 py-1.5 text-xs text-warn md:py-2 md:text-sm">
      The <strong>demo gateway</strong> answers: a script, no model.
      <span className="hidden md:inline">
        {' '}
        Set <code className="font-mono">LITELLM_GATEWAY_URL</code> and{' '}
        <code className="font-mono">LITELLM_API_KEY</code> in <code className="font-mono">.env</code> to use your
        models.
      </span>
    </p>
  );
}

function Waiting({ count }: { count: number }) {
  if (count === 0) return null;
  return (
    <>
      <Count value={count} isUrgent />
      <span className="sr-only">wait for you</span>
    </>
  );
}

/** Places, appearance and signing out, where the screen is too narrow for a side bar. */
function SmallMenu(props: { waiting: number; isHere: (href: string) => boolean }) {
  return (
    <DropdownMenu.Root>
      <DropdownMenu.Trigger className="flex items-center gap-2 rounded-lg p-1.5 text-soft hover:bg-raised hover:text-ink">
        <Waiting count={props.waiting} />
        <Menu className="size-5" aria-hidden />
        <span className="sr-only">Menu</span>
      </DropdownMenu.Trigger>
      <MenuContent>
        {PLACES.map(({ href, text, icon: Icon }) => (
          <MenuItem key={href} asChild>
            <Link href={href} {...(props.isHere(href) ? { 'aria-current': 'page' as const } : {})}>
              <Icon className="size-4 text-soft" aria-hidden /> {text}
            </Link>
          </MenuItem>
        ))}
        <DropdownMenu.Separator className="my-1 h-px bg-line" />
        <ThemeItems />
        <DropdownMenu.Separator className="my-1 h-px bg-line" />
        <MenuItem onSelect={() => void signOut()}>
          <LogOut className="size-4 text-soft" aria-hidden /> Sign out
        </MenuItem>
      </MenuContent>
    </DropdownMenu.Root>
  );
}

function ThemeItems() {
  const [chosen, setChosen] = useState(currentTheme);
  return (
    <DropdownMenu.RadioGroup
      value={chosen}
      onValueChange={(value) => {
        const theme = THEMES.find((one) => one.theme === value)?.theme ?? 'system';
        chooseTheme(theme);
        setChosen(theme);
      }}
    >
      {THEMES.map(({ theme, text, icon: Icon }) => (
        <MenuChoice key={theme} value={theme}>
          <Icon className="size-4 text-soft" aria-hidden /> <span className="flex-1">{text}</span>
          <DropdownMenu.ItemIndicator>
            <Check className="size-4 text-accent" aria-hidden />
          </DropdownMenu.ItemIndicator>
        </MenuChoice>
      ))}
    </DropdownMenu.RadioGroup>
  );
}

async function signOut(): Promise<void> {
  try {
    await api('/sign-out', { method: 'POST' });
    location.assign('/sign-in');
  } catch (error) {
    toast.error(messageOf(error));
  }
}

function Home() {
  return (
    <Link href="/sessions" className="flex w-fit items-center gap-2 font-semibold tracking-tight">
      <Mark /> Holdfast
    </Link>
  );
}
